"""Runs in line that a cluster does: Ray's own two nodes on this machine, and submitit's executor on this machine."""

import importlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from snows.__main__ import main
from snows.config import InputError, PruneConfig, RunConfig
from snows.events import Queued, RunFinished, RunStarted
from snows.runs import clusters, runner
from snows.runs.clusters import Needs, needs
from snows.runs.store import Run, RunError, RunStore
from tests.bench.faults import work_through
from tests.bench.workers import results_of, small


def in_line(store: RunStore, count: int) -> list[Run]:
    comparison = store.create_comparison([small()] * count)
    store.enqueue(comparison.runs(), comparison.id)
    return comparison.runs()


def alone(store: RunStore) -> Any:
    """The results of a run that was left alone."""
    other = RunStore(store.root.with_name("alone"))
    other.enqueue([other.create(small())])
    work_through(other, runner.execute)
    return results_of(other.list()[0])


def layers_begun_with(run: Run) -> list[int]:
    return [event.resumed for event in run.events()[0] if isinstance(event, RunStarted)]


def test_what_a_run_needs_follows_its_estimate_and_its_device() -> None:
    few = needs(small(), 2, has_cards=True)
    assert few == Needs(2, 0, few.memory)
    assert few.device == "cpu"
    assert 50e6 < few.memory < 10e9
    on = {
        device: needs(RunConfig(prune=PruneConfig(device=device)), 1, has_cards=has_cards).device
        for device, has_cards in (("auto", True), ("cuda", False), ("cuda:1", False))
    }
    assert set(on.values()) == {"cuda:0"}
    assert needs(RunConfig(prune=PruneConfig(device="auto")), 1, has_cards=False).device == "cpu"
    with pytest.raises(InputError, match="There is no model"):
        needs(RunConfig(model="none"), 1, has_cards=False)


def test_a_task_leaves_a_run_that_is_in_line_no_more(store: RunStore) -> None:
    (run,) = in_line(store, 1)
    run.cancel()
    clusters.work_on(str(run.path), "cpu", 1)
    assert [type(event).__name__ for event in run.events()[0]] == ["Queued", "RunCancelled"]


@pytest.mark.parametrize("executor", ["ray", "slurm"])
def test_a_package_that_is_not_there_is_named_before_anything_is_made(
    executor: str, store: RunStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = {"ray": "ray", "slurm": "submitit"}[executor]
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["compare", "--executor", executor]) == 2
    assert f"pip install {package}" in capsys.readouterr().err
    assert store.list() == []


@pytest.mark.parametrize("end", ["finished", "failed", "interrupted"])
def test_compare_leaves_its_runs_to_a_cluster_and_says_how_each_ended(
    end: str, store: RunStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[int, str | None]] = []

    def ends(run: Run) -> RunFinished:
        if end == "failed" and run.config().prune.seed == 1:
            raise RunError("The computer ran out of memory.")
        return RunFinished(metrics={})

    def cluster(runs: Sequence[Run], cores: int, address: str | None, look: Callable[[], None]) -> Iterator[Run]:
        asked.append((cores, address))
        assert [run.in_line() for run in runs] == [True] * 2
        if end == "interrupted":
            os.kill(os.getpid(), signal.SIGINT)
            look()
        for run in runs:
            if (hold := run.claim()) is not None:
                with hold:
                    hold.work(ends)
            yield run

    monkeypatch.setattr(clusters, "check", lambda executor: None)
    monkeypatch.setattr(clusters, "by_ray", cluster)
    seeds = ["--method", "wanda", "--seed", "0", "1"]
    code = main(["compare", *seeds, "--executor", "ray", "--cores", "3", "--address", "there"])
    said, states = capsys.readouterr().err, {run.state() for run in store.list()}
    assert asked == [(3, "there")]
    assert (code, states) == {
        "finished": (0, {"finished"}),
        "failed": (1, {"finished", "failed"}),
        "interrupted": (130, {"cancelled"}),
    }[end]
    assert "2 of 2: " in said
    assert ("The computer ran out of memory." in said) == (end == "failed")
    assert not any(run.in_line() for run in store.list())


# --- Ray ---


@pytest.fixture
def ray_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Any]]:
    """The address of a cluster of two nodes with a core each, and what ends the second one."""
    pytest.importorskip("ray", reason="needs Ray: pip install ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # no lower than this test, or a busy machine lets it wait for ever
    import ray
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "num_gpus": 0, "memory": 4_000_000_000, "object_store_memory": 80_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    second = cluster.add_node(**node)
    try:
        yield cluster.address, lambda: cluster.remove_node(second, allow_graceful=False)
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.slow
def test_a_node_of_ray_that_is_lost_loses_no_layer(ray_nodes: tuple[str, Any], store: RunStore) -> None:
    address, lose = ray_nodes
    whole, runs, is_lost = alone(store), in_line(store, 2), False

    def look() -> None:
        nonlocal is_lost
        if not is_lost and sum(run.state() == "running" and run.log().done > 0 for run in runs) == 2:
            is_lost = True
            lose()

    ended = list(clusters.by_ray(runs, 1, address, look))
    assert is_lost, "no two runs were in work at once"
    assert {run.id for run in ended} == {run.id for run in runs}
    assert [results_of(run) == whole for run in runs] == [True] * 2
    (lost,) = [run for run in runs if sum(isinstance(event, Queued) for event in run.events()[0]) > 1]
    assert layers_begun_with(lost)[1] > 0
    with pytest.raises(InputError, match=r"No node of the Ray cluster has what run .* needs: 9 cores"):
        list(clusters.by_ray(in_line(store, 1), 9))


@pytest.mark.slow
def test_a_comparison_is_done_by_workers_and_nodes_though_one_of_each_is_lost(
    ray_nodes: tuple[str, Any], store: RunStore
) -> None:
    address, lose_node = ray_nodes
    whole, runs = alone(store), in_line(store, 24)
    command = [sys.executable, "-m", "snows", "work", "--device", "cpu", "--root", str(store.root), "--until-empty"]
    workers, lost = list[subprocess.Popen[bytes]](), dict[str, str]()  # what was lost, and the run that was in its hands

    def look() -> None:
        begun = {run.id: run.holder().split()[1] for run in runs if run.state() == "running" and run.log().done > 0}
        if not workers and len(begun) == 2:  # both nodes are there, which took them longer than it takes a worker
            workers.extend(subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}) for _ in range(2))
        pids = [str(worker.pid) for worker in workers]
        for run_id, pid in begun.items():
            if "worker" not in lost and pid in pids:
                lost["worker"] = run_id
                workers[pids.index(pid)].kill()
        at_nodes = [run_id for run_id, pid in begun.items() if pid not in pids]
        if "worker" in lost and "node" not in lost and len(at_nodes) == 2:
            lost["node"] = ", ".join(at_nodes)
            lose_node()

    try:
        ended = {run.id for run in clusters.by_ray(runs, 1, address, look)}
        assert workers, "the nodes were never both at work"
        assert sorted(worker.wait(300) for worker in workers) == [-signal.SIGKILL, 0]
    finally:
        for worker in workers:
            worker.kill()
    assert set(lost) == {"worker", "node"}
    assert ended == {run.id for run in runs}
    assert [results_of(run) == whole for run in runs] == [True] * 24
    again = [run.id for run in runs if sum(isinstance(event, Queued) for event in run.events()[0]) > 1]
    assert lost["worker"] in again
    assert len(again) == 2
    assert all(layers_begun_with(run)[-1] > 0 for run in runs if run.id in again)


# --- SLURM ---


def test_without_slurm_there_is_a_sentence(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match="sbatch is not on the path"):
        list(clusters.by_slurm(in_line(store, 1), 1))


@pytest.mark.slow
def test_a_job_that_is_ended_at_its_time_limit_goes_on_where_it_was(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    submitit = pytest.importorskip("submitit", reason="needs submitit: pip install submitit")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    whole, runs, ended = alone(store), in_line(store, 2), set[str]()
    signalled = submitit.JobEnvironment._usr_sig()

    def look() -> None:
        for run in runs:
            if run.id not in ended and run.log().done > 0 and run.state() == "running":
                ended.add(run.id)
                os.kill(int(run.holder().split()[1]), signalled)

    assert {run.id for run in clusters.by_slurm(runs, 1, minutes=10, look=look, cluster="local")} == {run.id for run in runs}
    assert [results_of(run) == whole for run in runs] == [True] * 2
    assert ended, "no run was seen in work"
    assert signal.Signals(signalled)
    for run in runs:
        assert (len(layers_begun_with(run)) == 2 and layers_begun_with(run)[1] > 0) == (run.id in ended)


SLURM_CONF = """\
ClusterName=snows
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
KillWait=1
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=8000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE
"""


def free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A SLURM of one node with two cores on this machine, from Debian's packages slurm-wlm and munge."""
    pytest.importorskip("submitit", reason="needs submitit: pip install submitit")
    if os.getuid() != 0 or not all(map(shutil.which, ("munged", "slurmctld", "slurmd", "sbatch"))):
        pytest.skip("needs SLURM, and to be root: apt-get install slurm-wlm munge")
    host = socket.gethostname().split(".")[0]
    conf = tmp_path / "slurm.conf"
    conf.write_text(SLURM_CONF.format(host=host, folder=tmp_path, ports=free_ports(2)))
    monkeypatch.setenv("SLURM_CONF", str(conf))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    for folder in ("state", "spool"):
        (tmp_path / folder).mkdir()
    (tmp_path / "munge.key").write_bytes(os.urandom(1024))
    (tmp_path / "munge.key").chmod(0o600)
    names = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    munge = [f"--{flag}={tmp_path}/munge.{name}" for flag, name in names.items()]
    daemons = [
        subprocess.Popen([*command, *arguments])
        for command, arguments in (
            (["munged", "--foreground", "--force"], munge),
            (["slurmctld", "-D"], []),
            (["slurmd", "-D"], []),
        )
    ]
    try:
        until = time.monotonic() + 60
        while "idle" not in (said := subprocess.run(["sinfo", "-h", "-o", "%t"], capture_output=True, text=True)).stdout:
            if time.monotonic() > until:
                pytest.skip(
                    f"SLURM did not start here: {said.stdout} {said.stderr} {(tmp_path / 'slurmd.log').read_text()[-500:]}"
                )
            time.sleep(0.5)
        yield
        subprocess.run(["scancel", "--user", "root"], check=True)
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait()


@pytest.mark.slow
@pytest.mark.usefixtures("slurm")
def test_a_job_that_slurm_ends_at_its_limit_or_preempts_goes_on_where_it_was(store: RunStore) -> None:
    whole, runs, ended = alone(store), in_line(store, 3), dict[str, str]()
    signalled = importlib.import_module("submitit").JobEnvironment._usr_sig()

    def look() -> None:
        # As the limit does, and as somebody with a higher priority does.
        for number, how in enumerate((["scancel", f"--signal={signalled.name}"], ["scontrol", "requeue"])):
            run = runs[number]
            if run.id not in ended and run.state() == "running" and run.log().done > 0:
                listed = subprocess.run(["squeue", "-h", "-r", "-o", "%i"], capture_output=True, text=True, check=True)
                job = next(job for job in listed.stdout.split() if job.endswith(f"_{number}"))
                ended[run.id] = job
                subprocess.run([*how, job], check=True)

    assert {run.id for run in clusters.by_slurm(runs, 1, minutes=10, look=look)} == {run.id for run in runs}
    assert [results_of(run) == whole for run in runs] == [True] * 3
    assert set(ended) == {run.id for run in runs[:2]}, "a run was not seen in work"
    assert layers_begun_with(runs[0])[1] > 0
    assert len(layers_begun_with(runs[2])) == 1
    # What is preempted has a second to end in, in which it may finish.
    assert all(resumed > 0 for resumed in layers_begun_with(runs[1])[1:])
