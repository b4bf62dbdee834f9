"""Batches of images (N, C, H, W) as the primitives take and give them: checks, sizes, types, layouts, addresses."""

from collections.abc import Sequence

import torch
from torch import Tensor

from srnas_fast.errors import InputError


def check_images(x: Tensor) -> None:
    """Refuses what is no batch of floating images; raises InputError."""
    if x.ndim != 4 or not x.dtype.is_floating_point or 0 in x.shape[1:]:
        raise InputError(
            f"x is {tuple(x.shape)} of {x.dtype}; give a floating tensor (N, C, H, W) with channels and pixels"
        )


def check_one_device(first: Tensor, *others: Tensor | None) -> None:
    """Refuses tensors on several devices; raises InputError."""
    device = first.device
    for other in others:
        if other is not None and other.device != device:
            places = ", ".join(sorted({str(tensor.device) for tensor in (first, *others) if tensor is not None}))
            raise InputError(f"the tensors of one operation are on {places}; move them to one device")


def output_size(x: Tensor, stride: int) -> tuple[int, int]:
    """Height and width of a convolution's output here: every ``stride``-th pixel from the first one."""
    return (x.shape[2] - 1) // stride + 1, (x.shape[3] - 1) // stride + 1


def dense_format(z: Tensor) -> torch.memory_format:
    """The memory format that is nearest to the layout of ``z``: channels_last, or NCHW."""
    if z.ndim in (4, 5) and z.stride(1) == 1 and not z.is_contiguous():
        return torch.channels_last if z.ndim == 4 else torch.channels_last_3d
    return torch.contiguous_format


def empty_output(x: Tensor, channels: int, stride: int, dtype: torch.dtype) -> Tensor:
    """An uninitialised output of ``channels`` channels for the input ``x``, in its memory format."""
    size = (x.shape[0], channels, *output_size(x, stride))
    return torch.empty(size, dtype=dtype, device=x.device, memory_format=dense_format(x))


def empty_gradients(x: Tensor, kernels: Sequence[Tensor], want_x: bool, want_kernels: bool) -> list[Tensor]:
    """[dx, dkernel_0, ...], uninitialised, dx in the memory format of ``x``; empty where not wanted."""
    dx = torch.empty_like(x, memory_format=dense_format(x)) if want_x else x.new_empty(0)
    dense = torch.contiguous_format
    return [dx] + [torch.empty_like(w, memory_format=dense) if want_kernels else w.new_empty(0) for w in kernels]


def wide(x: Tensor) -> torch.dtype:
    """The type to compute in: that of ``x``, but at least float32."""
    return torch.promote_types(x.dtype, torch.float32)


def cast(dtype: torch.dtype, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Small parameters as the kernels read them: of one type, dense."""
    return [tensor.to(dtype).contiguous() for tensor in tensors]


def address(tensor: Tensor | None) -> int:
    """Where the compiled code finds the elements of a tensor; 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()


def addresses(tensors: Sequence[Tensor]) -> list[int]:
    """Where the compiled code finds the elements of each tensor."""
    return [tensor.data_ptr() for tensor in tensors]


def convolution_backward(
    dz: Tensor, x: Tensor, kernel: Tensor, dilation: int, stride: int, want_x: bool, want_kernel: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of a convolution that keeps the size, dense or depthwise, None where not wanted, in plain torch."""
    padding, groups = [dilation * (kernel.shape[-1] // 2)] * 2, x.shape[1] // kernel.shape[1]
    arguments = ([stride] * 2, padding, [dilation] * 2, False, [0, 0], groups, [want_x, want_kernel, False])
    return torch.ops.aten.convolution_backward(dz, x, kernel, None, *arguments)[:2]
