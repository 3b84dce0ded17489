"""The doors that do not exist (design, section 4), read from the imports themselves."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STANDARD = sys.stdlib_module_names
OURS = {"snows", "app", "pages", "tests"}


def imports(path: Path) -> set[str]:
    """Every module a file imports anywhere in it, with `from a import b` as `a` and `a.b`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} uses a relative import"
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def packages(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)}


def file_of(module: str) -> Path:
    return ROOT / f"{module.replace('.', '/')}.py"


def app_modules(start: str) -> set[str]:
    """`start` and the app's modules that it imports, by way of others too."""
    reached, waiting = set(), [start]
    while waiting:
        module = waiting.pop()
        if module not in reached:
            reached.add(module)
            waiting += [name for name in imports(file_of(module)) if name.startswith("app.") and file_of(name).exists()]
    return reached


def files(room: str) -> list[Path]:
    found = sorted((ROOT / room).glob("**/*.py"))
    assert found, f"nothing in {room}"
    return found


@pytest.mark.parametrize("path", files("snows"), ids=lambda p: p.name)
def test_the_engine_knows_no_screen(path: Path) -> None:
    assert packages(path) & {"streamlit", "plotly", "app", "pages"} == set()


@pytest.mark.parametrize("path", files("snows"), ids=lambda p: p.name)
def test_the_engine_starts_nothing_of_the_app(path: Path) -> None:
    # An import is not the only way up: a module can be started by its name, or a file by its path.
    tree = ast.parse(path.read_text())
    constants = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    written = {text for text in constants if re.search(r"\b(app|pages)[./]\w", text)}
    assert written <= {ast.get_docstring(tree, clean=False)}


@pytest.mark.parametrize("name", ["config", "events"])
def test_config_and_events_know_only_the_standard_library_and_validation(name: str) -> None:
    others = packages(ROOT / f"snows/{name}.py") - STANDARD - {"pydantic", "pydantic_core"}
    assert others <= OURS
    assert {module for module in imports(ROOT / f"snows/{name}.py") if module.partition(".")[0] in OURS} == set()


def test_the_solver_knows_torch_and_nothing_of_ours() -> None:
    assert packages(ROOT / "snows/method/solver.py") - STANDARD == {"torch"}


@pytest.mark.parametrize("name", ["charts", "compare", "frames", "jobs", "report", "runs", "study"])
def test_charts_and_jobs_know_no_streamlit(name: str) -> None:
    assert "streamlit" not in packages(ROOT / f"app/{name}.py")
    ours = {module for module in imports(ROOT / f"app/{name}.py") if module.startswith("app.")}
    assert all("streamlit" not in packages(ROOT / f"{module.replace('.', '/')}.py") for module in ours)


def test_state_draws_nothing() -> None:
    # Every page imports it, and so does what has no figure to show.
    reached = app_modules("app.state")
    assert not {module for module in reached if re.match(r"app\.(report|charts)", module)}
    assert not {module for module in reached if "plotly" in packages(file_of(module))}


@pytest.mark.parametrize("path", [*files("snows"), *files("app"), *files("pages")], ids=lambda p: f"{p.parent.name}-{p.name}")
def test_nobody_imports_a_page_or_a_test(path: Path) -> None:
    assert packages(path) & {"pages", "tests"} == set()


@pytest.mark.parametrize("path", files("app"), ids=lambda p: p.name)
def test_app_modules_hide_no_installed_package(path: Path) -> None:
    # `streamlit run` puts app/ on the path first, so a module there named after another would take its place.
    assert path.stem not in STANDARD | {"torch", "timm", "pandas", "numpy", "plotly", "app"}


def test_settings_and_events_load_without_torch() -> None:
    # A first page must not wait the seconds that torch takes to import.
    code = "import sys, snows.config, snows.events, snows.store; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("path", [*files("snows"), *files("app"), *files("pages")], ids=lambda p: f"{p.parent.name}-{p.name}")
def test_a_runs_life_is_written_in_one_place(path: Path) -> None:
    made = {node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
    names = {
        func.attr if isinstance(func, ast.Attribute) else func.id
        for func in made
        if hasattr(func, "attr") or hasattr(func, "id")
    }
    written = names & {"Queued", "RunFailed", "RunCancelled"}
    assert written == ({"Queued", "RunFailed", "RunCancelled"} if path == ROOT / "snows/store.py" else set())
