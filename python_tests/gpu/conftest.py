"""The public functions on Triton: on a GPU, or by its interpreter on the CPU."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from srnas_fast.backends import triton

# Of the largest entry, by the type of the result: sums over images of a half type are float32, and as exact.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2**-10, torch.bfloat16: 2**-7}


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker("gpu")


@pytest.fixture
def without_tf32():
    """Products and convolutions of full float32 precision."""
    settings = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [setting.allow_tf32 for setting in settings]
    for setting in settings:
        setting.allow_tf32 = False
    yield
    for setting, allowed in zip(settings, before, strict=True):
        setting.allow_tf32 = allowed


@pytest.fixture
def backend(monkeypatch, without_tf32):
    """Triton, forced: the device it serves, and in ``ran`` the names of its kernels that ran."""
    need_triton()
    monkeypatch.setenv("SRNAS_FAST_BACKEND", "triton")
    ran = []
    record(triton.triton_kernel, ran, monkeypatch)
    return SimpleNamespace(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"), ran=ran)


def need_triton():
    """Skips where Triton has neither a GPU nor its interpreter."""
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        if torch.cuda.get_device_capability() < triton.LEAST:
            pytest.skip("Triton needs a GPU of compute capability {}.{}".format(*triton.LEAST))
    elif os.environ.get("TRITON_INTERPRET") != "1":  # which Triton reads when a kernel is defined
        pytest.skip("needs a GPU, or TRITON_INTERPRET=1")


def record(ask, ran, monkeypatch):
    """Lets every primitive ask as before; each run of a kernel it got puts the kernel's name into the list."""

    def recording(name, *tensors, **options):
        kernel = ask(name, *tensors, **options)

        def run(*arguments):
            ran.append(name)
            return kernel(*arguments)

        return run if kernel else None

    for path, module in list(sys.modules.items()):
        if path.startswith("srnas_fast.primitives.") and hasattr(module, ask.__name__):
            monkeypatch.setattr(module, ask.__name__, recording)


@pytest.fixture
def randn(backend):
    """As torch.randn on the device of the backend, the same numbers on each; half types are rounded to."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape, dtype=torch.float32):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(backend.device, dtype)

    return randn


@pytest.fixture
def image(randn):
    """A function: random images of a shape (N, C, H, W) in a layout."""

    def image(shape, layout="NCHW", dtype=torch.float32):
        n, channels, height, width = shape
        if layout == "slice of channels":
            return randn(n, channels + 2, height, width, dtype=dtype)[:, 1:-1]
        if layout == "every second column":
            return randn(n, channels, height, 2 * width, dtype=dtype)[..., ::2]
        form = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}[layout]
        return randn(n, channels, height, width, dtype=dtype).contiguous(memory_format=form)

    return image


@pytest.fixture
def agree(backend):
    """A function that compares another one's results and gradients with those of a reference."""

    def agree(function, reference, arguments, kernels, wanted=()):
        """Asserts that they agree and repeat, and that just these kernels of the backend ran; gives the results.

        The reference gets the same numbers in float64 on the CPU. ``wanted`` are the positions of those arguments,
        tensors and lists of tensors, whose gradients are compared.
        """
        given = [value for value in tree_leaves(arguments) if isinstance(value, torch.Tensor)]
        coarsest = max((tensor.dtype for tensor in given), key=TOLERANCES.get)

        def outcome(function, convert):
            """(results, gradients) for the arguments as they are converted."""
            leaves = [
                tree_map_only(torch.Tensor, lambda t, k=k: convert(t.detach()).requires_grad_(k in wanted), argument)
                for k, argument in enumerate(arguments)
            ]
            results = tree_leaves(function(*leaves))
            wants = [t for t in tree_leaves(leaves) if isinstance(t, torch.Tensor) and t.requires_grad]
            return results, torch.autograd.grad(results, wants, map(slope, results)) if wants else ()

        def slope(result):
            """The gradient of a result: always the same numbers."""
            numbers = torch.randn(result.shape, generator=torch.Generator().manual_seed(1)).to(coarsest)
            return torch.empty_like(result).copy_(numbers)

        exact = outcome(reference, lambda tensor: tensor.cpu().double())
        backend.ran.clear()
        results, gradients = outcome(function, lambda tensor: tensor)
        assert set(backend.ran) == set(kernels)
        for found, expected in zip([*results, *gradients], [*exact[0], *exact[1]], strict=True):
            # A sum that cancels is as exact as its terms, which are of size 1.
            largest = max(1.0, expected.abs().max().item()) if expected.numel() else 0.0
            tolerance = TOLERANCES[found.dtype] * largest
            torch.testing.assert_close(found.detach().cpu().double(), expected.detach(), rtol=0, atol=tolerance)
        if backend.device.type == "cuda":  # Triton's interpreter has one thread
            again = outcome(function, lambda tensor: tensor)
            assert all(map(torch.equal, [*results, *gradients], [*again[0], *again[1]]))
        return results

    return agree
