"""The doors that do not exist (README, "How it is organised"), read from the imports themselves. One line a room."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STANDARD = sys.stdlib_module_names

# The stair, from the bottom: a room knows its own files and those of lower steps. Rooms on one step do not know each other.
STAIR = [
    {"bundled", "config", "events", "process"},
    {"packed"},
    {"sources", "method"},
    {"measures", "export"},
    {"runs"},
    {"plans"},
    {"cli"},
    {"__main__"},
]
# Within the app: no Streamlit, and nothing that imports it.
WITHOUT_STREAMLIT = [
    "app/charts",
    "app/tables",
    "app/work",
    "app/words.py",
    "app/texts.py",
    "app/report.py",
    "app/hand_on.py",
    "app/take_along.py",
]


def imports(path: Path) -> set[str]:
    """Every module a file imports anywhere in it, with `from a import b` as `a` and `a.b`."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} uses a relative import"
            modules |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return modules


def packages(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)}


def files(place: str) -> list[Path]:
    path = ROOT / place
    paths = [path] if path.is_file() else sorted(path.glob("**/*.py"))
    assert paths, f"nothing in {place}"
    return paths


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def file_of(module: str) -> Path | None:
    """The file of one of our modules; None for a name within one."""
    place = ROOT / module.replace(".", "/")
    return next((p for p in (place.with_suffix(".py"), place / "__init__.py") if p.exists()), None)


def reached_from(start: str) -> set[Path]:
    """The file of `start` and the app's files that it imports, by way of others too."""
    reached: set[Path] = set()
    waiting = [start]
    while waiting:
        path = file_of(waiting.pop())
        if path is not None and path not in reached:
            reached.add(path)
            waiting += [module for module in imports(path) if module.startswith("app.")]
    return reached


def step(room: str) -> int:
    return next(i for i, rooms in enumerate(STAIR) if room in rooms)


@pytest.mark.parametrize("path", files("snows"), ids=name_of)
def test_the_engine_knows_no_screen(path: Path) -> None:
    assert packages(path) & {"streamlit", "plotly", "app", "pages"} == set()
    # An import is not the only way up: a module can be started by its name, or a file by its path.
    tree = ast.parse(path.read_text())
    constants = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    written = {text for text in constants if re.search(r"\b(app|pages)[./]\w", text)}
    door = {"app/main.py"} if path == ROOT / "snows/bundled.py" else set()  # which `snows app` opens, and no other file
    assert written <= {ast.get_docstring(tree, clean=False), *door}
    assert ("snows.bundled.EXPLORER" in imports(path)) == (path == ROOT / "snows/cli/explorer.py")


@pytest.mark.parametrize("path", [p for p in files("snows") if p != ROOT / "snows/__init__.py"], ids=name_of)
def test_a_room_knows_only_lower_steps(path: Path) -> None:
    own = path.relative_to(ROOT / "snows").with_suffix("").parts[0]
    others = {module.split(".")[1] for module in imports(path) if module.startswith("snows.")} - {own, "__version__"}
    assert {other for other in others if step(other) >= step(own)} == set()


@pytest.mark.parametrize("name", ["config", "events"])
def test_config_and_events_know_only_the_standard_library_and_validation(name: str) -> None:
    assert packages(ROOT / f"snows/{name}.py") - STANDARD <= {"pydantic", "pydantic_core"}


def test_the_solver_knows_torch_and_nothing_of_ours() -> None:
    assert packages(ROOT / "snows/method/solver.py") - STANDARD == {"torch"}


@pytest.mark.parametrize("path", [p for place in WITHOUT_STREAMLIT for p in files(place)], ids=name_of)
def test_what_computes_for_the_app_knows_no_streamlit(path: Path) -> None:
    module = name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    assert [name_of(file) for file in reached_from(module) if "streamlit" in packages(file)] == []


def test_state_draws_nothing() -> None:
    # Every page imports it, and so does what has no figure to show.
    reached = reached_from("app.state")
    assert not {path for path in reached if "plotly" in packages(path)}
    assert not {path for path in reached if path == ROOT / "app/report.py" or path.parent == ROOT / "app/charts"}


@pytest.mark.parametrize("path", [*files("snows"), *files("app"), *files("pages")], ids=name_of)
def test_nobody_imports_a_page_or_a_test(path: Path) -> None:
    assert packages(path) & {"pages", "tests"} == set()


@pytest.mark.parametrize("path", sorted((ROOT / "app").glob("*")), ids=name_of)
def test_app_modules_hide_no_installed_package(path: Path) -> None:
    # `streamlit run` puts app/ on the path first, so a module there named after another would take its place.
    assert path.stem not in STANDARD | {"torch", "timm", "pandas", "numpy", "plotly", "app"}


def test_settings_and_events_load_without_torch() -> None:
    # A first page must not wait the seconds that torch takes to import.
    code = "import sys, snows.config, snows.events, snows.runs.store; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("path", [*files("snows"), *files("app"), *files("pages")], ids=name_of)
def test_a_runs_life_is_written_in_one_place(path: Path) -> None:
    called = {node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
    names = {func.attr for func in called if isinstance(func, ast.Attribute)}
    names |= {func.id for func in called if isinstance(func, ast.Name)}
    life = {"Queued", "RunFailed", "RunCancelled"}
    assert names & life == (life if path == ROOT / "snows/runs/store.py" else set())


@pytest.mark.parametrize("path", [*files("app"), *files("pages")], ids=name_of)
def test_what_an_address_says_is_kept_in_one_way(path: Path) -> None:
    # Links name what an address shall say, as an argument; only state reads and writes it.
    nodes = list(ast.walk(ast.parse(path.read_text())))
    assert [node for node in nodes if isinstance(node, ast.keyword) and node.arg == "bind"] == []
    assert "query-params" not in [node.value for node in nodes if isinstance(node, ast.Constant)]
    if path != ROOT / "app/state.py":
        assert [node for node in nodes if isinstance(node, ast.Attribute) and node.attr == "query_params"] == []


@pytest.mark.parametrize("path", files("app/lessons"), ids=name_of)
def test_a_lessons_numbers_know_no_streamlit(path: Path) -> None:
    # `st` is for what draws, and for what keeps a network that was opened or a number that was computed.
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            uses = [n for part in node.body for n in ast.walk(part) if isinstance(n, ast.Name) and n.id == "st"]
            assert not uses or node.name.lstrip("_").startswith("draw"), f"{node.name} in {path.name} uses st"
