"""What the launcher launches compiles for every card that Triton serves, without a GPU and within its shared memory."""

import os

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget

from srnas_fast.kernels import separable_gradient as module

TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
KERNELS = ("products_kernel", "dd_kernel", "transpose_kernel")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") == "1", reason="Triton compiles nothing in a process that interprets"
    ),
]


def signature_of(value, path, constants):
    """The type of an argument as Triton's launcher sees it: None and the stride 1 are constants."""
    if isinstance(value, tuple):
        return tuple(signature_of(item, (*path, i), constants) for i, item in enumerate(value))
    if isinstance(value, torch.Tensor):
        return TYPES[value.dtype]
    if value is None or value == 1 or not isinstance(value, int):
        constants[path] = value
        return "constexpr"
    return "i32" if value < 2**31 else "i64"


class Recorder:
    """Stands in for a kernel and keeps what it was launched with."""

    def __init__(self, kernel, launches):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        return lambda *args, **kwargs: self.launches.append((self.kernel, args, kwargs))


def compile_launch(kernel, args, kwargs, capability):
    options = {name: kwargs.pop(name) for name in ("num_warps", "num_stages") if name in kwargs}
    values = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
    signature, constants = {}, {}
    for place, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name], constants[(place,)] = "constexpr", value
        else:
            signature[parameter.name] = signature_of(value, (place,), constants)
    source = triton.compiler.ASTSource(kernel, signature, constants)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def launches_of(monkeypatch, dtype, form, channels, outputs, size, side, stride, right):
    """The launches for one candidate, on tensors without memory."""
    launches = []
    for name in KERNELS:
        monkeypatch.setattr(module, name, Recorder(getattr(module, name), launches))
    meta = {"device": "meta", "dtype": dtype}
    x = torch.empty(4, channels, side, side, **meta).to(memory_format=form)
    small = (side - 1) // stride + 1
    dy = torch.empty(4, outputs, small, small, **meta).to(memory_format=form)
    kernel, left = torch.empty(channels, 1, size, size, **meta), torch.empty(outputs, channels, **meta).t()
    rows = torch.empty(1, channels, device="meta") if right else None
    module.separable_gradient(
        torch.empty_like(x),
        torch.empty(outputs, device="meta"),
        [torch.empty_like(kernel)],
        [torch.empty(outputs, channels, device="meta")],
        True,
        x,
        dy,
        [kernel],
        [left],
        [torch.empty(channels, channels, device="meta")] if right else [],
        rows,
        rows,
        [2],
        stride,
    )
    return launches


@pytest.mark.parametrize("capability", [75, 80, 86, 90, 120])
@pytest.mark.parametrize(
    "dtype, form, channels, outputs, size, side, stride, right, tf32",
    [
        (torch.float32, "NCHW", 64, 64, 7, 48, 1, True, False),
        (torch.bfloat16, "channels_last", 20, 70, 5, 256, 2, False, True),
    ],
)
def test_compiles_within_shared_memory(
    monkeypatch, capability, dtype, form, channels, outputs, size, side, stride, right, tf32
):
    monkeypatch.setattr(module, "precision", lambda: "tf32" if tf32 else "ieee")
    launches = launches_of(monkeypatch, dtype, FORMATS[form], channels, outputs, size, side, stride, right)
    assert [kernel.__name__ for kernel, _, _ in launches] == list(KERNELS)
    for launch in launches:
        compiled = compile_launch(*launch, capability)
        assert compiled.metadata.shared <= (64 if capability == 75 else 48) * 1024
