"""One holder at a time, over threads, forks and processes, and free again the moment that one ends."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from snows.config import RunConfig
from snows.runs import lock
from snows.runs.lock import TakenError, is_taken, shared, take
from snows.runs.store import RunStore, StoreError

pytestmark = pytest.mark.slow


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lock"


def start(code: str, *arguments: object) -> subprocess.Popen:
    """A process that runs `code` and has printed its first line."""
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline()
    return process


def end(process: subprocess.Popen) -> None:
    process.kill()
    process.communicate()


def test_what_nobody_took_is_free_and_looking_writes_nothing(path: Path) -> None:
    assert not is_taken(path)
    assert not is_taken(path / "in" / "a" / "folder")
    assert not list(path.parent.iterdir())
    take(path).release()
    before = path.read_bytes(), path.stat().st_mtime_ns
    assert not is_taken(path)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_a_second_taker_is_refused_in_any_thread_and_any_thread_may_let_go(path: Path) -> None:
    held = take(path)
    refused = []

    def try_it() -> None:
        try:
            take(path).release()
        except TakenError:
            refused.append(threading.current_thread().name)

    try_it()
    thread = threading.Thread(target=try_it, name="other")
    thread.start()
    thread.join()
    assert refused == ["MainThread", "other"]
    assert is_taken(path)
    letting_go = threading.Thread(target=held.release)
    letting_go.start()
    letting_go.join()
    assert not is_taken(path)
    try_it()
    assert len(refused) == 2


HOLDER = """
import os, subprocess, sys, time
from pathlib import Path
from snows.runs import lock
held = lock.take(Path(sys.argv[1]))
match sys.argv[2]:
    case "fork":
        if os.fork() == 0:
            os.setsid()
            time.sleep(30)
    case "child":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)", sys.argv[1]], start_new_session=True)
print(os.getpid(), flush=True)
time.sleep(30)
"""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("leaves", ["nothing", "fork", "child"])
def test_a_killed_holder_frees_it_at_once_whatever_it_leaves_behind(path: Path, leaves: str) -> None:
    process = start(HOLDER, path, leaves)
    try:
        assert is_taken(path)
        assert lock.holder(path).startswith(f"process {process.pid} on ")
        with pytest.raises(TakenError):
            take(path)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not is_taken(path)
        take(path).release()
    finally:
        process.stdout.close()
        process.wait()
        for child in Path("/proc").glob("[0-9]*/cmdline"):  # what outlived it, by the path that only it was given
            if str(path).encode() in child.read_bytes():
                os.kill(int(child.parent.name), signal.SIGKILL)


def test_a_forked_child_has_not_what_its_parent_has_and_takes_nothing_from_it(path: Path) -> None:
    held = take(path)
    child = os.fork()
    if child == 0:
        try:
            take(path)
            os._exit(1)
        except TakenError:
            held.release()  # of no effect here
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert is_taken(path)
    held.release()
    assert not is_taken(path)


LOOKER = """
import sys, time
from pathlib import Path
from snows.runs.lock import is_taken
print("ready", flush=True)
seen = [is_taken(Path(sys.argv[1])) for _ in range(20_000)]
print(sum(seen))
"""


def test_those_who_look_do_not_see_each_other(path: Path) -> None:
    take(path).release()
    lookers = [start(LOOKER, path) for _ in range(3)]
    assert [int(looker.communicate(timeout=120)[0]) for looker in lookers] == [0, 0, 0]


def test_those_who_look_keep_nobody_from_taking_it(path: Path) -> None:
    lookers = [start(LOOKER, path) for _ in range(2)]
    taken = 0
    while any(looker.poll() is None for looker in lookers):
        held = take(path)
        assert is_taken(path)
        held.release()
        taken += 1
    assert taken > 20
    for looker in lookers:
        end(looker)


def test_what_is_shared_cannot_be_taken_but_shared(path: Path) -> None:
    take(path).release()
    with shared(path), shared(path):
        begun = time.monotonic()
        with pytest.raises(TakenError):
            take(path)
        assert time.monotonic() - begun < 10
    held = take(path)
    with pytest.raises(TakenError), shared(path):
        pass
    held.release()


MANY = """
import resource, sys
from snows.config import RunConfig
from snows.runs.store import RunStore, StoreError
resource.setrlimit(resource.RLIMIT_NOFILE, (64, int(sys.argv[2])))
store = RunStore(sys.argv[1])
holds = []
try:
    for _ in range(200):
        holds.append(store.create(RunConfig()).queue())
except StoreError as error:
    print(error)
print(len(holds), sum(run.state() == "queued" for run in store.list()) if len(holds) == 200 else "")
"""


def test_more_runs_wait_than_a_process_may_have_files_open_at_first(tmp_path: Path) -> None:
    out = subprocess.run([sys.executable, "-c", MANY, tmp_path / "more", "4096"], capture_output=True, text=True, check=True)
    assert out.stdout == "200 200\n"
    few = subprocess.run([sys.executable, "-c", MANY, tmp_path / "few", "64"], capture_output=True, text=True, check=True)
    assert (
        "Too many open files. Let fewer runs wait at once, or raise the limit (`ulimit -n`), and resume the rest." in few.stdout
    )


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def none_here(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    run = RunStore(tmp_path / "runs").create(RunConfig())
    monkeypatch.setattr(fcntl, "flock", none_here)
    with pytest.raises(StoreError, match=r"its file system has no locks, which keep two workers from one run\. Set SNOWS_RUNS"):
        run.queue()
    assert run.state() == "interrupted"
    assert run.events() == ([], 0)
