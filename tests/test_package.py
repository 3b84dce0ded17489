"""What `pip install snows-explorer` installs: what it asks for, and that the wheel works from any folder without this one."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import snows
from snows import bundled
from snows.cli import explorer
from tests.bench.dependencies import Locked, locked
from tests.e2e.conftest import answering, free_port
from tests.test_rooms import STANDARD, files, packages

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
# What is imported under another name than it is installed by, and what comes with another.
INSTALLED_AS = {"PIL": "pillow", "pydantic_core": "pydantic", "markupsafe": "jinja2"}
# What whoever wants it installs by themselves; the sentence or the README says so.
ON_REQUEST = {"coremltools", "onnxruntime"}


def pins(name: str) -> dict[str, str]:
    """The versions that a file of requirements pins."""
    return dict(re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / name).read_text(), re.MULTILINE))


def bounds(requirements: list[str]) -> dict[str, str]:
    return dict(requirement.split(">=") for requirement in requirements)


def test_it_asks_for_what_the_tests_run_with() -> None:
    # The GPU tests need no newer torch than this (README, Development), and torchvision is the one of that torch.
    tried = pins("requirements.txt") | {"torch": "2.11", "torchvision": "0.26"}
    assert bounds(PROJECT["dependencies"]) | bounds(EXTRAS["app"]) == tried
    readme = (ROOT / "README.md").read_text()
    assert "torch 2.11 or newer" in readme
    for name, version in (bounds(EXTRAS["ray"]) | bounds(EXTRAS["slurm"])).items():
        assert f"{name}=={version}" in readme


def test_the_engine_asks_for_what_it_imports_and_the_app_for_the_rest() -> None:
    def imported(*places: str) -> set[str]:
        names = {name for place in places for path in files(place) for name in packages(path)}
        return {INSTALLED_AS.get(name, name) for name in names - STANDARD - {"snows", "app", "pages"}}

    engine = set(bounds(PROJECT["dependencies"]))
    assert engine == imported("snows") - ON_REQUEST
    assert set(bounds(EXTRAS["app"])) == (imported("app", "pages") - engine) | {"authlib"}  # the sign-in is Streamlit's
    assert set(explorer.TAKES) == set(bounds(EXTRAS["app"])) - {"authlib", "kaleido"}  # only where they are wanted


def test_without_the_app_a_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from snows.__main__ import main

    monkeypatch.setattr(explorer, "TAKES", ("json", "no_such_package"))
    assert main(["app"]) == 2
    said = capsys.readouterr().err
    assert "no_such_package" in said
    assert "json" not in said
    assert "pip install 'snows-explorer[app]'" in said


def test_a_checkout_finds_its_own() -> None:
    assert bundled.HOME == ROOT
    assert bundled.EXPLORER.exists()
    # Streamlit looks beside the script that it is given, wherever it was started.
    assert (bundled.EXPLORER.parent / ".streamlit" / "config.toml").exists()


def test_the_lock_pins_what_is_pinned_and_all_that_this_needs() -> None:
    packages = locked()
    for package in (one for versions in packages.values() for one in versions):
        assert re.fullmatch(r"==[\w.]+", str(package.requirement.specifier))
        assert package.hashes
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in package.hashes)
    pinned = {canonicalize_name(name): [f"=={version}"] for name, version in pins("requirements.txt").items()}
    assert {name: [str(one.requirement.specifier) for one in packages[name]] for name in pinned} == pinned
    # On this machine one version of each is meant, and as far as it is installed, all that it needs is among them.
    here = {name: version for name, versions in packages.items() if (version := version_here(versions)) is not None}
    for name in here:
        for need in needed_by(name):
            assert need.specifier.contains(here[canonicalize_name(need.name)], prereleases=True), f"{name} needs {need}"


def version_here(versions: list[Locked]) -> str | None:
    meant = [one.requirement for one in versions if one.requirement.marker is None or one.requirement.marker.evaluate()]
    assert len(meant) <= 1
    return str(meant[0].specifier).removeprefix("==") if meant else None


def needed_by(name: str) -> list[Requirement]:
    """What an installed package needs here, without its extras."""
    try:
        needs = [Requirement(text) for text in requires(name) or []]
    except PackageNotFoundError:
        return []
    return [need for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]


def test_the_changelog_has_this_version_first() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert re.fullmatch(rf"{re.escape(snows.__version__)} — \d{{4}}-\d\d-\d\d", headings[1])
    assert re.fullmatch(r"\d+\.\d+\.\d+", snows.__version__)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling", reason="needs hatchling, which builds the wheel: pip install -r requirements-dev.txt")
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=ROOT, check=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel in it and nothing else; what it asks for is installed here anyway."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--target", folder, wheel], check=True)
    return folder


def elsewhere(installed: Path, runs: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return kept | {"PYTHONPATH": str(installed), "SNOWS_RUNS": str(runs), "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_what_is_in_the_wheel(wheel: Path) -> None:
    assert wheel.name == f"snows_explorer-{snows.__version__}-py3-none-any.whl"
    assert wheel.stat().st_size < 16e6
    names = zipfile.ZipFile(wheel).namelist()
    # One package, and nothing that another one might be called as well.
    assert {name.partition("/")[0] for name in names} == {"snows", f"snows_explorer-{snows.__version__}.dist-info"}
    tracked = subprocess.run(
        ["git", "ls-files", "app", "pages", "assets"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert {f"snows/_explorer/{path}" for path in tracked} <= set(names)
    assert "snows/py.typed" in names
    assert not [name for name in names if Path(name).name.startswith("test_") or "secret" in name or "__pycache__" in name]


@pytest.mark.slow
def test_the_engine_works_where_it_is_installed(installed: Path, tmp_path: Path) -> None:
    def run(*command: str) -> str:
        environment = elsewhere(installed, tmp_path / "runs")
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout

    assert run(sys.executable, "-m", "snows", "--version") == f"snows {snows.__version__}\n"
    script = (installed / "bin" / "snows").read_text().splitlines()
    assert "from snows.__main__ import run" in script
    assert run(sys.executable, str(installed / "bin" / "snows"), "--version") == f"snows {snows.__version__}\n"
    small = "--update none --refine none --num-calibration 8 --num-held-back 0 --num-evaluation 8 --device cpu --json"
    assert '"accuracy"' in run(sys.executable, "-m", "snows", "prune", *small.split())


@pytest.mark.slow
def test_the_app_starts_where_it_is_installed(installed: Path, tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "snows", "app", "--", "--server.port", str(port), "--server.headless", "true"]
    log_path, environment = tmp_path / "log", elsewhere(installed, tmp_path / "runs")
    with answering(command, tmp_path, environment, log_path, port, seconds=120) as address:
        # Its settings came along: it listens to this machine alone.
        assert address in log_path.read_text()
        assert "External URL" not in log_path.read_text()
        # The first page, drawn without a browser from the files that were installed.
        code = (
            "import os, pathlib, snows.bundled as b\n"
            f"assert b.HOME == pathlib.Path({str(installed)!r}, 'snows/_explorer')\n"
            "from streamlit.testing.v1 import AppTest\n"
            "app = AppTest.from_file(str(b.EXPLORER), default_timeout=120).run()\n"
            "print(*app.exception)\n"
            "os._exit(bool(app.exception) or not app.title)"
        )
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
