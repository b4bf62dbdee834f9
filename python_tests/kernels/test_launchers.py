"""What all launchers have in common: what they allocate, that they wait for no device, that their launches compile."""

import inspect
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton", exc_type=ImportError)
import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402

from srnas_fast.kernels import (  # noqa: E402
    merge_kernels,
    multi_depthwise,
    separable_gradient,
    separable_sum,
    shuffle_concat,
    simplex_project,
    weighted_sum,
)

FILES = merge_kernels, multi_depthwise, separable_gradient, separable_sum, shuffle_concat, simplex_project, weighted_sum
SMALL, LARGE = (256, 256), (512, 1024)  # of images; reductions use all of their programs for both


def launches(size=SMALL, dtype=torch.float32, form=torch.contiguous_format):
    """Of each launcher, by name: (launcher, its kernels, arguments), with every result wanted, without memory."""

    def image(channels, scale=1):
        shape = 2, channels, size[0] // scale, size[1] // scale
        return torch.empty(shape, dtype=dtype, device="meta", memory_format=form)

    def numbers(*shape, dtype=torch.float32):
        return torch.empty(shape, dtype=dtype, device="meta")

    x, y, half = image(8), image(6), image(8, 2)
    dense, depthwise = [numbers(6, 8, s, s) for s in (3, 5)], [numbers(8, 1, s, s) for s in (3, 5)]
    pointwise, square = [numbers(6, 8) for _ in range(2)], [numbers(8, 8) for _ in range(2)]
    left = [matrix.t() for matrix in pointwise]
    weights, rows, shift, centres, scale = numbers(2), numbers(2, 8), numbers(8), numbers(2, 8), numbers()
    gradients = x, numbers(6), depthwise, pointwise
    radius, logits = numbers(3, dtype=torch.float64), numbers(3, 9)
    plan = [1, 2], 1
    calls = [
        (merge_kernels.merge_kernels, ["_merge"], (numbers(6, 8, 9, 9), weights, dense, plan[0])),
        (
            merge_kernels.merge_kernels_backward,
            ["_merge_backward"],
            (weights, dense, numbers(6, 8, 9, 9), weights, dense, plan[0]),
        ),
        (multi_depthwise.multi_depthwise, ["_outputs"], ([half, half], x, depthwise, [1, 2], 2)),
        (
            multi_depthwise.multi_depthwise_backward,
            ["_input_gradient", "_kernel_gradients"],
            (x, depthwise, [half, half], x, depthwise, [1, 2], 2),
        ),
        (
            separable_gradient.separable_gradient,
            ["products_kernel", "dd_kernel", "transpose_kernel"],
            (*gradients, True, x, y, depthwise, left, square, rows, centres, *plan),
        ),
        (separable_sum.separable_moments, ["_sums", "_products"], (rows, numbers(2, 8, 8), x, depthwise, *plan)),
        (separable_sum.separable_sum, ["_sum"], (y, True, x, depthwise, pointwise, numbers(6), centres, *plan)),
        (shuffle_concat.shuffle_concat, ["_forward"], (half, image(4, 2), x, 2, scale)),
        (shuffle_concat.shuffle_concat_backward, ["_backward"], (image(4, 2), x, scale, half, x, 2, scale)),
        (simplex_project.simplex_project, ["_forward"], (logits, logits, radius, True)),
        (simplex_project.simplex_project_backward, ["_backward"], (logits, logits, logits, radius, True)),
        (weighted_sum.weighted_sum, ["_forward"], (x, True, rows, [x, x], shift, centres)),
        (weighted_sum.weighted_sum_backward, ["_backward"], (rows, shift, [x, None], x, rows, [x, x], centres)),
    ]
    return {launch.__name__: (launch, kernels, arguments) for launch, kernels, arguments in calls}


NAMES = list(launches())


def test_no_launcher_is_missing():
    public = [
        name
        for file in FILES
        for name, function in inspect.getmembers(file, inspect.isfunction)
        if function.__module__ == file.__name__ and inspect.signature(function).return_annotation is None
    ]
    assert sorted(name for name in public if not name.startswith("_")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_docstrings_tell_bytes(name):
    launch, kernels, _ = launches()[name]
    for kernel in kernels:
        text = " ".join(getattr(inspect.getmodule(launch), kernel).fn.__doc__.split())
        assert "least possible" in text and ("Reads" in text or "read" in text)


@pytest.fixture
def scratch(bytes_created):
    """A function: the bytes that a launcher makes beside its outputs."""
    return lambda name, *given: bytes_created(*launches(*given)[name][:2], *launches(*given)[name][2])


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_scratch(scratch, form):
    grown = {}
    for name in NAMES:
        small, large = scratch(name, SMALL, torch.float32, form), scratch(name, LARGE, torch.float32, form)
        assert small >= 0
        grown[name] = large - small
        if name in ("merge_kernels", "shuffle_concat", "simplex_project", "simplex_project_backward", "weighted_sum"):
            assert large == 0
    entries = math.prod(LARGE) - math.prod(SMALL)
    images = {
        "separable_gradient": 2 * 8 * entries * 4,  # one d_k
        # of every tile of 1024 entries a number for each candidate and channel, and for dysum; one for dscale
        "weighted_sum_backward": 3 * 2 * 8 * entries // (1024 if form == torch.contiguous_format else 1024 // 8) * 4,
        "shuffle_concat_backward": 2 * 8 * (entries // 4) // 1024 * 4,
    }
    assert {name: growth for name, growth in grown.items() if growth} == images
    parameters = 8 * (9 + 25) + 2 * 6 * 8
    assert scratch("separable_sum", LARGE) == parameters * 4  # packed: nothing but y grows with the image


def test_scratch_for_gradients_of_narrow_images(scratch):
    grown = scratch("separable_gradient", LARGE, torch.bfloat16) - scratch("separable_gradient", SMALL, torch.bfloat16)
    assert grown == 2 * 2 * 8 * (math.prod(LARGE) - math.prod(SMALL)) * 4  # one d_k, and dx before it is rounded


class NoWaiting(TorchDispatchMode):
    """Refuses what makes the CPU wait for a GPU or moves numbers between them, which no CUDA graph can hold."""

    def __init__(self, device):
        super().__init__()
        self.device = torch.device(device)

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        options = options or {}
        assert torch.Tag.data_dependent_output not in function.tags
        assert torch.Tag.dynamic_output_shape not in function.tags
        assert self.elsewhere([*arguments, *options.values()]) == [], function
        result = function(*arguments, **options)
        assert self.elsewhere([result]) == [], function
        return result

    def elsewhere(self, values):
        """The tensors and devices among the values that are not ours."""
        tensors = torch.utils._pytree.tree_leaves(values)
        devices = [getattr(value, "device", value) for value in tensors]
        return [device for device in devices if isinstance(device, torch.device) and device != self.device]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_waits_for_the_device(name, monkeypatch, idle):
    launch, kernels, arguments = launches()[name]
    for kernel in kernels:
        monkeypatch.setattr(inspect.getmodule(launch), kernel, idle)
    with NoWaiting("meta"):
        launch(*arguments)


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.to("meta"),
        lambda x: torch.empty_like(x, device="meta"),
    ],
)
def test_waiting_is_noticed(wait):
    x = torch.ones(3)
    with NoWaiting("cpu"), pytest.raises(AssertionError):
        wait(x)


def test_numbers_from_the_cpu_are_noticed():
    with NoWaiting("meta"), pytest.raises(AssertionError):
        torch.tensor([1.0, 2.0]) * torch.empty(2, device="meta")


class Driver:
    """Stands in for a GPU's driver, for kernels that are compiled and not run."""

    def __init__(self, capability):
        self.capability = capability

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        return self.capability  # Triton keeps what it compiled by device

    def get_current_stream(self, device):
        return 0


@pytest.fixture
def compiled(monkeypatch):
    """A function: what launchers launch, compiled for a capability by way of Triton's own launch, tuples and all."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("needs a process without TRITON_INTERPRET")
    found = []

    def kernel_of(function, grid):
        return lambda *arguments, **options: found.append(function.warmup(*arguments, grid=grid, **options))

    def compile_all(capability, launch, arguments):
        monkeypatch.setattr("triton.runtime.jit.driver", SimpleNamespace(active=Driver(capability)))
        launch(*arguments)
        return found

    monkeypatch.setattr(triton.runtime.JITFunction, "__getitem__", kernel_of)
    return compile_all


@pytest.mark.parametrize(
    "capability, size, dtype, form",
    [
        (75, (5, 7), torch.float32, torch.contiguous_format),
        (90, (5, 7), torch.bfloat16, torch.channels_last),
        (90, (2**15, 2**14), torch.float32, torch.contiguous_format),  # an image is larger than an int32 can tell
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_launches_compile(name, capability, size, dtype, form, compiled):
    launch, kernels, arguments = launches(size, dtype, form)[name]
    found = compiled(capability, launch, arguments)
    assert {kernel.name for kernel in found} == set(kernels)
    assert all(kernel.metadata.shared <= 48 * 1024 for kernel in found)


@pytest.mark.parametrize("sizes, strides", [((1, 1, 1, 2**31), (0, 0, 0, 2)), ((1, 1, 70_000, 1500), (0, 0, 2000, 1))])
def test_a_grid_has_one_axis_since_the_others_take_no_more_than_65535(sizes, strides):
    shares, blocks, grid = weighted_sum._tiles(sizes, strides)
    assert len(grid) == 1 and 65_535 < grid[0] < 2**31
    assert shares * blocks["LAST"] >= sizes[1] * sizes[2] * sizes[3]


def test_tf32_as_torch_is_told_by_either_name():
    code = (
        "import sys, torch; from srnas_fast.kernels.separable_sum import precision; "
        "matmul = torch.backends.cuda.matmul; print(precision()); exec(sys.argv[1]); print(precision())"
    )
    told = ["matmul.allow_tf32 = True", "torch.set_float32_matmul_precision('high')"]
    told += ["matmul.fp32_precision = 'tf32'"] if hasattr(torch.backends.cuda.matmul, "fp32_precision") else []
    for setting in told:
        shown = subprocess.run([sys.executable, "-c", code, setting], capture_output=True, text=True, check=True)
        assert shown.stdout.split() == ["ieee", "tf32"], setting
