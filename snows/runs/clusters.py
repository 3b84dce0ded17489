"""Runs in line, done by a cluster's own scheduler: Ray, or SLURM by way of submitit. Each is imported when it is wanted.

A scheduler's task is no more than: claim this run, and work on it. So progress goes through the run's folder as ever, which all
machines see; a task that is lost with its node, or ended at its time limit, leaves the run in line, and the scheduler starts it
again, where it goes on at the first unfinished layer. A run that somebody cancels, or that another worker did, is none to do.
"""

import importlib
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from snows.config import InputError, RunConfig
from snows.process import prepare
from snows.runs.executors import LOOK_SECONDS
from snows.runs.store import DeviceLostError, Run

EXECUTORS = ("ray", "slurm")
# The package that each is reached by.
_PACKAGES = {"ray": "ray", "slurm": "submitit"}
# A time limit may end a run's task so many times. One that gets no layer done between two fails by itself.
_MOST_LIMITS = 1000


@dataclass(frozen=True)
class Needs:
    """What a run's task is given: cores, cards, and bytes of main memory."""

    cores: int
    cards: int
    memory: int

    @property
    def device(self) -> str:
        """The device as the task sees it, who is shown its own cards alone."""
        return "cuda:0" if self.cards else "cpu"


def check(executor: str) -> None:
    """Raise `InputError` where what `executor` takes is not here."""
    try:
        importlib.import_module(_PACKAGES[executor])
    except ImportError:
        package = _PACKAGES[executor]
        raise InputError(
            f"The package {package} is not installed. Install it, on each machine: pip install {package}"
        ) from None


def needs(config: RunConfig, cores: int, *, has_cards: bool) -> Needs:
    """By the estimate of a run. `has_cards`: whether the cluster has any, for a config that leaves the device open. Raises
    `InputError` for a config that cannot be done."""
    device = config.prune.device
    cards = int(device.startswith("cuda") or (device == "auto" and has_cards))
    alike = config.prune.model_copy(update={"seed": 0, "device": "cpu"})  # as it can be estimated here
    return Needs(cores, cards, _estimated_bytes(config.model_copy(update={"name": "", "prune": alike}).model_dump_json()))


@lru_cache(maxsize=256)
def _estimated_bytes(config: str) -> int:
    from snows.runs import estimate

    return estimate.plan(RunConfig.model_validate_json(config)).bytes


def work_on(path: str, device: str, cores: int) -> bool:
    """The task: claim the run in that folder and work on it. Whether it is in line no more; one that is in another's hands
    still is."""
    prepare()
    import torch

    from snows.runs import runner

    torch.set_num_threads(cores)
    run = Run(path)
    if (hold := run.claim()) is None:
        if run.in_line():
            time.sleep(LOOK_SECONDS)
        return not run.in_line()
    with hold:
        try:
            hold.work(partial(runner.execute, device=device))
        except DeviceLostError:
            os._exit(1)  # which the scheduler answers with another process
    return True


# --- Ray ---


def by_ray(
    runs: Sequence[Run], cores: int, address: str | None = None, look: Callable[[], None] = lambda: None
) -> Iterator[Run]:
    """Have a Ray cluster do these runs, which are in line; each is yielded once its task has ended. `address`: of the cluster;
    without one, that of `$RAY_ADDRESS`, or a new one on this machine. `look` is called about once a second.

    Raises `InputError` for a cluster that is not there, and for a run that is too large for all of its nodes.
    """
    ray = importlib.import_module("ray")
    if not ray.is_initialized():
        own = str(Path(__file__).parents[2])  # this program, which has the same path on each node
        try:
            ray.init(address=address, runtime_env={"env_vars": {"PYTHONPATH": own}}, log_to_driver=False)
        except (ConnectionError, ValueError) as error:
            raise InputError(f"There is no Ray cluster at {address}: {error} Start one with: ray start --head") from error
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    task, waiting = ray.remote(work_on), dict[Any, tuple[Run, Callable[[], Any]]]()
    for run in runs:
        need = needs(run.config(), cores, has_cards=any(node.get("GPU") for node in nodes))
        wanted = {"CPU": need.cores, "GPU": need.cards, "memory": need.memory}
        if not any(all(node.get(name, 0) >= count for name, count in wanted.items()) for node in nodes):
            raise InputError(
                f"No node of the Ray cluster has what run {run.id} needs: {need.cores} cores, {need.cards} cards and "
                f"{need.memory / 1e9:.1f} GB. Ask for fewer cores or a smaller batch size, or add such a node. It waits."
            )
        # Lost with their node as often as may be: a run on which workers are lost in a row ends by itself.
        options = {"num_cpus": need.cores, "num_gpus": need.cards, "memory": need.memory, "name": run.id, "max_retries": -1}
        begin: Callable[[], Any] = partial(task.options(**options).remote, str(run.path.resolve()), need.device, cores)
        waiting[begin()] = run, begin
    while waiting:
        ended, _ = ray.wait(list(waiting), timeout=LOOK_SECONDS)
        for reference in ended:
            run, begin = waiting.pop(reference)
            if ray.get(reference):
                yield run
            else:  # a worker beside the cluster has it, and may be lost; until then the node does another
                waiting[begin()] = run, begin
        look()


# --- SLURM ---


class SlurmTask:
    """`work_on` as submitit takes it: at its time limit, or when it is preempted, it is queued again as it is."""

    def __call__(self, path: str, device: str, cores: int) -> None:
        while not work_on(path, device, cores):
            pass

    def checkpoint(self, *arguments: Any) -> Any:
        return importlib.import_module("submitit").helpers.DelayedSubmission(self, *arguments)

    __submitit_checkpoint__ = checkpoint  # as later versions call it


def by_slurm(
    runs: Sequence[Run],
    cores: int,
    minutes: float = 60,
    partition: str | None = None,
    look: Callable[[], None] = lambda: None,
    cluster: str = "slurm",
) -> Iterator[Run]:
    """Have SLURM do these runs, which are in line, as one array of jobs; each is yielded once its job has ended.

    `minutes`: a job's time limit, at which it is queued again and goes on; `cluster`: what submitit submits to. Logs are in
    `.slurm`, beside the runs. Raises `InputError` where SLURM is not here.
    """
    if cluster == "slurm" and shutil.which("sbatch") is None:
        raise InputError("SLURM's sbatch is not on the path. Start this where jobs are submitted, or leave out --executor.")
    submitit = importlib.import_module("submitit")
    wanted = [needs(run.config(), cores, has_cards=False) for run in runs]
    folder = runs[0].path.resolve().parent / ".slurm"
    limits = {f"{cluster}_max_num_timeout": _MOST_LIMITS}
    executor = submitit.AutoExecutor(folder=folder, cluster=cluster, **limits)
    executor.update_parameters(
        name="snows",
        timeout_min=minutes,
        cpus_per_task=cores,
        mem_gb=math.ceil(max(need.memory for need in wanted) / 1e9),
        gpus_per_node=max(need.cards for need in wanted),
        **({"slurm_partition": partition} if partition else {}),
    )
    paths, devices = [str(run.path.resolve()) for run in runs], [need.device for need in wanted]
    waiting = dict(zip(executor.map_array(SlurmTask(), paths, devices, [cores] * len(runs)), runs, strict=True))
    while waiting:
        for job in [job for job in waiting if job.done()]:
            yield waiting.pop(job)
        look()
        time.sleep(LOOK_SECONDS)
