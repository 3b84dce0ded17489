"""Kernels that write where they must not: what windows and statistics run, under an allocator that checks its blocks.

The first one met was oneDNN's, see `operations._convolution`. A process that such a kernel has been in dies much later, in some
other place, so each round has a process of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from snows.method.operations import IN_WINDOWS, aten
from snows.method.rows import _weight_gradient

ROOT = Path(__file__).parents[3]
CHECKING = "libc_malloc_debug.so.0"  # glibc's own, since 2.34

ROUND = """
import random, sys
import torch
from snows.method.operations import IN_WINDOWS, aten
from snows.method.rows import _weight_gradient

torch.set_num_threads(int(sys.argv[1]))
layout = getattr(torch, sys.argv[2])
draw = random.Random(int(sys.argv[3]))
convolution = IN_WINDOWS[aten.conv2d.default]
for _ in range(150):
    kernel = draw.choice([(1, 1), (1, 1), (3, 3), (2, 2), (1, 3), (5, 5)])
    stride, dilation = draw.choice([(1, 1), (2, 2), (3, 3), (2, 1)]), draw.choice([1, 1, 2])
    padding = draw.choice([0, 0, 1]) if kernel != (5, 5) else 2
    inputs, outputs = draw.choice([1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 17]), draw.choice([1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 31])
    groups = draw.choice([1, 1, 1, inputs])
    outputs = outputs if groups == 1 else inputs
    size = draw.choice([9, 10, 11, 12])
    print(inputs, outputs, kernel, stride, padding, dilation, groups, size, flush=True)
    x = torch.randn(draw.choice([1, 2, 4, 5]), inputs, size, size).contiguous(memory_format=layout).requires_grad_()
    w = torch.randn(outputs, inputs // groups, *kernel).contiguous(memory_format=layout).requires_grad_()
    for _ in range(3):
        y = convolution(x, w, None, list(stride), [padding], [dilation], groups)
        torch.autograd.grad(y.square().sum(), (x, w))
        if groups == 1 and padding == 0:
            _weight_gradient(x.detach(), w.shape, y.detach(), stride, (dilation, dilation))
        neighbours = [torch.randn(count) for count in (1, 3, 7, 17, 64)]
"""


def _checking_allocator() -> bool:
    environment = os.environ | {"LD_PRELOAD": CHECKING}
    probe = subprocess.run([sys.executable, "-c", ""], env=environment, capture_output=True, text=True, check=False)
    return sys.platform == "linux" and not probe.stderr


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["", "AVX2"])
@pytest.mark.parametrize("layout", ["channels_last", "contiguous_format"])
@pytest.mark.parametrize("threads", [1, 2])
def test_no_convolution_that_windows_run_writes_out_of_bounds(threads: int, layout: str, isa: str) -> None:
    if not _checking_allocator():
        pytest.skip(f"this system has no {CHECKING}")
    environment = os.environ | {"LD_PRELOAD": CHECKING, "GLIBC_TUNABLES": "glibc.malloc.check=3", "PYTHONPATH": str(ROOT)}
    if isa:
        environment["ONEDNN_MAX_CPU_ISA"] = isa
    ran = subprocess.run(
        [sys.executable, "-c", ROUND, str(threads), layout, "1"], env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, f"died of {ran.stdout.splitlines()[-1:]}: {ran.stderr[-300:]}"


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (1, 3)])
@pytest.mark.parametrize("stride", [[1], [2], [2, 1], [3, 2]])
@pytest.mark.parametrize("padding", [[0], [1], [2, 0]])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_form_in_windows_is_the_same_convolution(
    kernel: tuple[int, int], stride: list[int], padding: list[int], groups: int
) -> None:
    x, w = torch.randn(2, 4, 7, 8, dtype=torch.float64), torch.randn(6, 4 // groups, *kernel, dtype=torch.float64)
    bias = torch.randn(6, dtype=torch.float64)
    here = IN_WINDOWS[aten.conv2d.default](x, w, bias, stride, padding, [1], groups)
    torch.testing.assert_close(here, aten.conv2d.default(x, w, bias, stride, padding, [1], groups))


@pytest.mark.parametrize(
    ("convolution", "shape", "kernel"),
    [(aten.conv1d.default, (2, 3, 9), (1,)), (aten.conv3d.default, (2, 3, 5, 6, 7), (1, 1, 1))],
)
@pytest.mark.parametrize("padding", [0, 1])
def test_pointwise_convolutions_over_one_and_three_axes(
    convolution: torch._ops.OpOverload, shape: tuple[int, ...], kernel: tuple[int, ...], padding: int
) -> None:
    x, w = torch.randn(shape, dtype=torch.float64), torch.randn(4, 3, *kernel, dtype=torch.float64)
    stride, paddings = [2] * len(kernel), [padding] * len(kernel)
    torch.testing.assert_close(IN_WINDOWS[convolution](x, w, None, stride, paddings), convolution(x, w, None, stride, paddings))


def test_the_weight_gradient_of_a_strided_pointwise_convolution() -> None:
    x, w = torch.randn(3, 5, 7, 8, dtype=torch.float64), torch.randn(4, 5, 1, 1, dtype=torch.float64, requires_grad=True)
    y = F.conv2d(x, w, stride=(2, 3))
    cotangent = torch.randn_like(y)
    torch.testing.assert_close(_weight_gradient(x, w.shape, cotangent, (2, 3)), torch.autograd.grad(y, w, cotangent)[0])
