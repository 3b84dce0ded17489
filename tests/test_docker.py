"""The container's recipe, as far as it can be run without a builder: in an empty folder with what it copies, nothing else."""

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from snows.config import PruneConfig, RunConfig
from snows.runs.store import RunStore

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / ".docker"


def instructions() -> list[tuple[str, str]]:
    """Each instruction of the Dockerfile with its argument, in order; lines that go on are one."""
    lines = [line for line in (FOLDER / "Dockerfile").read_text().splitlines() if line.strip() and not line.startswith("#")]
    whole = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in whole)]


def argument(name: str) -> str:
    (only,) = [rest for other, rest in instructions() if other == name]
    return only


def copied() -> dict[str, str]:
    """What is copied, to where."""
    pairs = [rest.split() for name, rest in instructions() if name == "COPY"]
    return {source: target for source, target in pairs}


def command(text: str) -> list[str]:
    """An instruction's command in JSON, with this interpreter for the image's."""
    first, *rest = json.loads(text.partition("CMD")[2] or text)
    assert first == "python"
    return [sys.executable, *rest]


def services() -> dict[str, dict]:
    return yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A folder with what the image has in its own."""
    folder = tmp_path / "snows"
    folder.mkdir()
    for source, target in copied().items():
        place = folder / target / (Path(source).name if target.endswith("/") else "")
        place.parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
        copy(ROOT / source, place)
    return folder


def environment(runs: Path) -> dict[str, str]:
    """That of the image: nothing of this checkout's."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}
    assert str(ROOT) not in kept.get("PYTHONPATH", "")
    return kept | {"SNOWS_RUNS": str(runs), "OMP_NUM_THREADS": "1"}


def test_what_is_promised_of_the_image() -> None:
    names = [name for name, _ in instructions()]
    assert argument("ARG") == "DEVICE=cpu"
    assert argument("USER") == "1000"
    assert names.index("USER") > max(place for place, name in enumerate(names) if name in ("RUN", "COPY"))
    assert "useradd --uid 1000" in [rest for name, rest in instructions() if name == "RUN"][-1]
    assert ("ENV", f"SNOWS_RUNS={argument('VOLUME')}") in instructions()
    assert argument("FROM").split(":")[1].startswith("3.11")


def test_all_it_copies_is_here_and_nothing_else_is_sent() -> None:
    allowed = {line[1:] for line in (FOLDER / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    assert allowed == set(copied())
    assert "*" in (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    tracked = subprocess.run(
        ["git", "ls-files", *copied()], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert {
        source for source in copied() if not any(path == source or path.startswith(f"{source}/") for path in tracked)
    } == set()
    assert not [path for path in tracked if "secret" in path]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_it_installs(image: Path, device: str) -> None:
    step = next(rest for name, rest in instructions() if name == "RUN")
    script = f'pip() {{ echo "pip $*"; [ "$3" != torch.txt ] || cat torch.txt; }}\nset -e\n{step}'
    environment = os.environ | {"DEVICE": device}
    done = subprocess.run(["sh", "-c", script], cwd=image, env=environment, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[-1] == "pip install -r requirements.txt"
    if device == "cuda":
        assert len(lines) == 1
        return
    assert lines[0] == "pip install -r torch.txt --index-url https://download.pytorch.org/whl/cpu"
    assert [line.partition("==")[0] for line in lines[1:-1]] == ["torch", "torchvision"]
    assert not (image / "torch.txt").exists()


def test_one_app_and_two_workers_share_the_runs() -> None:
    app, *workers = services().values()
    assert len(workers) == 2
    assert app["environment"]["SNOWS_WORKERS"] == "0"
    assert "command" not in app  # that of the image
    volume = argument("VOLUME")
    assert {one["volumes"][0].partition(":")[2] for one in (app, *workers)} == {volume}
    assert all(one["image"] == "snows" for one in (app, *workers))
    for one in (app, *workers):
        build = (FOLDER / one["build"]["context"]).resolve()
        assert build == ROOT
        assert (build / one["build"]["dockerfile"]).exists()
    assert app["ports"] == [f"127.0.0.1:{argument('EXPOSE')}:{argument('EXPOSE')}"]


@pytest.mark.slow
def test_the_app_starts_and_is_healthy(image: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    health = [part.replace(argument("EXPOSE"), port) for part in command(argument("HEALTHCHECK"))]
    start = [*command(argument("CMD")), "--server.port", port]
    assert subprocess.run(health, capture_output=True, check=False).returncode  # before it runs it is not healthy
    settings = {"SNOWS_WORKERS": services()["app"]["environment"]["SNOWS_WORKERS"]}
    with (tmp_path / "log").open("wb") as log:
        app = subprocess.Popen(start, cwd=image, env=environment(tmp_path / "runs") | settings, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 60
            while subprocess.run(health, capture_output=True, check=False).returncode:
                assert app.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            # A page, of the files that were copied, drawn without a browser; then away, while the engine is imported.
            code = (
                "import os; from streamlit.testing.v1 import AppTest\n"
                "app = AppTest.from_file('app/main.py', default_timeout=120).run()\n"
                "os._exit(bool(app.exception) or not app.title)"
            )
            subprocess.run([sys.executable, "-c", code], cwd=image, env=environment(tmp_path / "runs"), check=True)
        finally:
            app.terminate()
            app.wait(30)


@pytest.mark.slow
def test_a_worker_does_a_run(image: Path, tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs")
    config = RunConfig(
        num_calibration=8, num_held_back=0, num_evaluation=8, prune=PruneConfig(update="none", refine="none", device="cpu")
    )
    run = store.create(config)
    store.enqueue([run])
    work = command(json.dumps(services()["worker-1"]["command"]))
    assert shlex.join(work[1:]).startswith("-m snows work")
    subprocess.run([*work, "--once"], cwd=image, env=environment(store.root), check=True, timeout=300)
    assert run.state() == "finished"
