"""A seed repeats a run, whatever else the process does: exports, live checks, another device's worker."""

import copy
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from snows.config import PruneConfig, SolverConfig
from snows.measures.checks import compare_products
from snows.method.graph import NetworkGraph
from snows.method.pruner import prune
from tests.snows.helpers import NETWORKS, case, site_problem

pytestmark = pytest.mark.slow

SWITCHES = {
    "mkldnn": torch._C._get_mkldnn_enabled,
    "nnpack": torch._C._get_nnpack_enabled,
    "cudnn": torch._C._get_cudnn_enabled,
    "cudnn tf32": torch._C._get_cudnn_allow_tf32,
    "multi-head attention": torch.backends.mha.get_fastpath_enabled,
    "flash": torch._C._get_flash_sdp_enabled,
    "memory-efficient": torch._C._get_mem_efficient_sdp_enabled,
    "plain attention": torch._C._get_math_sdp_enabled,
}
SETTERS = [
    *("_set_mkldnn_enabled", "_set_nnpack_enabled", "_set_cudnn_enabled", "_set_cudnn_allow_tf32"),
    *("_set_sdp_use_flash", "_set_sdp_use_mem_efficient", "_set_sdp_use_math", "_set_sdp_use_cudnn"),
]
CONFIG = PruneConfig(pattern="50%", k_steps=4, batch_size=8, solver=SolverConfig(newton_steps=2))


@cache  # made once, before anything goes on beside it: the seed is the whole process's
def network_of(name: str) -> tuple[nn.Module, Tensor]:
    build, shape = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return build().eval(), torch.randn(24, *shape)


def pruned(name: str) -> dict[str, Tensor]:
    module, images = network_of(name)
    return prune(module, images, CONFIG).model.state_dict()


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


@contextmanager
def beside(work: Callable[[], object]) -> Iterator[list[int]]:
    """`work` again and again in another thread until the block ends; how often it was done."""
    ended, times, errors = threading.Event(), [0], list[BaseException]()

    def again() -> None:
        while not ended.is_set():
            try:
                work()
            except BaseException as error:
                errors.append(error)
                return
            times[0] += 1

    thread = threading.Thread(target=again)
    thread.start()
    try:
        yield times
    finally:
        ended.set()
        thread.join()
    assert not errors, errors


def exporter(name: str) -> Callable[[], NetworkGraph]:
    """Exports a network of its own: nobody else may use a module meanwhile."""
    module, images = copy.deepcopy(network_of(name))
    return lambda: NetworkGraph.export(module, images[:2])


@pytest.mark.parametrize("name", ["residual", "module"])
def test_exports_beside_a_run_leave_its_bits_alone(name: str) -> None:
    alone = pruned(name)
    with beside(exporter("module")) as times:
        while times[0] == 0:
            assert same(pruned(name), alone)
    assert same(pruned(name), alone)


def test_a_second_worker_and_live_checks_leave_a_runs_bits_alone() -> None:
    alone, other = pruned("module"), pruned("residual")

    def second_worker() -> None:
        assert same(pruned("residual"), other)

    def live_checks() -> None:
        compare_products(site_problem(case("fused", "qkv.weight", 10_000)))

    with beside(second_worker) as runs, beside(live_checks) as checks:
        while runs[0] == 0 or checks[0] == 0:
            assert same(pruned("module"), alone)


class Tied(nn.Module):
    """One module under two names: the exporter's tracer then asks whose attribute it is."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.second = self.first
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x))
        return self.attention(x, x, x, need_weights=False)[0]


def test_an_export_leaves_modules_of_other_threads_alone() -> None:
    exported, own = Tied().eval(), Tied().eval()
    images = torch.randn(2, 3, 8)
    with torch.no_grad():
        expected = own(images)
        with beside(lambda: NetworkGraph.export(exported, images)) as times:
            while times[0] < 3:
                assert not torch.compiler.is_compiling()
                assert not torch.compiler.is_exporting()
                assert torch.equal(own(images), expected)
                assert torch.equal(nn.Sequential(own.first, own.first)(images), own.first(own.first(images)))


class Looked(nn.Module):
    """Another thread prints a tensor while this is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        with ThreadPoolExecutor() as another:
            for use in (repr, copy.deepcopy, torch.nan_to_num, torch.func.vmap(torch.sin)):
                another.submit(lambda use=use: use(torch.ones(2))).result()
        return self.fc(x)


def test_an_export_is_left_alone_by_what_other_threads_do() -> None:
    module, images = Looked().eval(), torch.randn(2, 8)
    graph = NetworkGraph.export(module, images)
    assert [site.name for site in graph.sites] == ["fc.weight"]
    torch.testing.assert_close(graph.run(images)[0], module(images))


@pytest.mark.parametrize("name", ["residual", "fused", "module"])
def test_no_switch_of_the_process_is_touched(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {switch: state() for switch, state in SWITCHES.items()}
    module, images = network_of(name)

    def refuse(setter: str) -> Callable[..., None]:
        return lambda *values: pytest.fail(f"{setter}{values} is a switch of the whole process")

    for setter in SETTERS:
        monkeypatch.setattr(torch._C, setter, refuse(setter))
    monkeypatch.setattr(torch.backends.mha, "set_fastpath_enabled", refuse("mha"))
    prune(module, images, CONFIG)
    assert {switch: state() for switch, state in SWITCHES.items()} == before
