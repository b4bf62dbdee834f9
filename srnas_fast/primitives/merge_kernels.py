"""``sum_k w_k pad(W_k)``: the kernel of one convolution that equals a weighted sum of several."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from srnas_fast.backends import compiled_kernel, triton_kernel
from srnas_fast.errors import InputError
from srnas_fast.primitives.direct import call
from srnas_fast.primitives.flops import register_flop_formula
from srnas_fast.primitives.images import check_one_device


def merge_kernels_reference(weights: Tensor, kernels: Sequence[Tensor], dilations: Sequence[int]) -> Tensor:
    """What ``merge_kernels`` computes, in plain torch."""
    size = _size(kernels, dilations)
    merged = kernels[0].new_zeros(*kernels[0].shape[:2], size, size)
    for weight, kernel, dilation in zip(weights, kernels, dilations, strict=True):
        taps_of(merged, kernel.shape[-1], dilation).add_(weight * kernel)
    return merged


def merge_kernels(weights: Tensor, kernels: Sequence[Tensor], dilations: Sequence[int]) -> Tensor:
    """``sum_k weights_k * kernels_k``, each kernel spread by its dilation and centred in the largest one.

    A convolution of stride 1 with zero padding with the result equals the weighted sum of the K convolutions with
    the dilated kernels (the sum of kernels in place of features of Meta Kernels, 2019, and MergeNAS, IJCAI 2020).

    Args:
        weights: (K,).
        kernels: K tensors (O, I, k, k) with one O and I, each k odd.
        dilations: K whole numbers from 1 up.

    Returns:
        (O, I, S, S), contiguous, S = max(dilation * (k - 1) + 1). Differentiable once.

    Raises:
        InputError: the shapes do not go together.

    >>> small, wide = torch.ones(1, 1, 1, 1), torch.ones(1, 1, 3, 3)
    >>> merge_kernels(torch.tensor([10.0, 1.0]), [small, wide], [1, 2])[0, 0]
    tensor([[ 1.,  0.,  1.,  0.,  1.],
            [ 0.,  0.,  0.,  0.,  0.],
            [ 1.,  0., 11.,  0.,  1.],
            [ 0.,  0.,  0.,  0.,  0.],
            [ 1.,  0.,  1.,  0.,  1.]])
    """
    shapes = [tuple(kernel.shape) for kernel in kernels]
    fits = len(shapes) > 0 and len(dilations) == len(shapes) and weights.shape == (len(shapes),)
    fits = fits and all(len(s) == 4 and s[2] == s[3] and s[2] % 2 and s[:2] == shapes[0][:2] for s in shapes)
    if not (fits and all(isinstance(dilation, int) and dilation > 0 for dilation in dilations)):
        raise InputError(
            f"weights {tuple(weights.shape)}, kernels {shapes} and dilations {list(dilations)} do not go together; "
            "give (K,), K odd square kernels (O, I, k, k) with one O and I, and K whole numbers from 1 up"
        )
    if len({kernel.dtype for kernel in kernels}) > 1 or not kernels[0].dtype.is_floating_point:
        raise InputError(f"kernels are {[kernel.dtype for kernel in kernels]}; give one floating type")
    check_one_device(weights, *kernels)
    return call(_merge_kernels, weights, kernels, dilations)


def _size(kernels: Sequence[Tensor], dilations: Sequence[int]) -> int:
    return max(dilation * (kernel.shape[-1] - 1) + 1 for kernel, dilation in zip(kernels, dilations, strict=True))


def taps_of(merged: Tensor, size: int, dilation: int) -> Tensor:
    """The entries of ``merged`` that a kernel of that size falls on: a view (O, I, size, size)."""
    reach = dilation * (size - 1)
    first = (merged.shape[-1] - 1 - reach) // 2
    taps = slice(first, first + reach + 1, dilation)
    return merged[:, :, taps, taps]


def _run(compiled, merged: Tensor, weights: Tensor, kernels: Sequence[Tensor], dilations, *outputs) -> None:
    """Calls compiled code; ``merged`` and ``weights`` are contiguous, ``kernels`` in any layout."""
    compiled(
        merged.data_ptr(),
        list(merged.shape),
        weights.data_ptr(),
        [kernel.data_ptr() for kernel in kernels],
        [kernel.shape[-1] for kernel in kernels],
        [stride for kernel in kernels for stride in kernel.stride()],
        list(dilations),
        *outputs,
    )


@torch.library.custom_op("srnas_fast::merge_kernels", mutates_args=())
def _merge_kernels(weights: Tensor, kernels: Sequence[Tensor], dilations: Sequence[int]) -> Tensor:
    kernel = triton_kernel("merge_kernels", *kernels)
    if kernel:
        size = _size(kernels, dilations)
        merged = kernels[0].new_empty(*kernels[0].shape[:2], size, size)
        kernel(merged, weights, kernels, dilations)
        return merged
    dtype = torch.promote_types(kernels[0].dtype, torch.float32)
    wide_weights = weights.to(dtype).contiguous()
    wide = [kernel.to(dtype) for kernel in kernels]
    compiled = compiled_kernel("merge_kernels", wide_weights, *wide)
    if compiled is None:
        merged = merge_kernels_reference(wide_weights, wide, dilations)
    else:
        size = _size(kernels, dilations)
        merged = wide[0].new_empty(*wide[0].shape[:2], size, size)
        _run(compiled, merged, wide_weights, wide, dilations)
    return merged.to(kernels[0].dtype)


@_merge_kernels.register_fake
def _(weights, kernels, dilations):
    size = _size(kernels, dilations)
    return kernels[0].new_empty(*kernels[0].shape[:2], size, size)


@torch.library.custom_op("srnas_fast::merge_kernels_backward", mutates_args=())
def _merge_kernels_backward(
    dmerged: Tensor, weights: Tensor, kernels: Sequence[Tensor], dilations: Sequence[int]
) -> list[Tensor]:
    """[dweights, dkernel_0, ...]: dweights_k = <kernel_k, dmerged at its taps>, dkernel_k = weights_k times those."""
    kernel = triton_kernel("merge_kernels_backward", dmerged, *kernels)
    if kernel:
        dweights = torch.empty_like(weights, memory_format=torch.contiguous_format)
        dkernels = [torch.empty_like(k, memory_format=torch.contiguous_format) for k in kernels]
        kernel(dweights, dkernels, dmerged, weights, kernels, dilations)
        return [dweights, *dkernels]
    dtype = torch.promote_types(dmerged.dtype, torch.float32)
    wide_dmerged, wide_weights = dmerged.to(dtype).contiguous(), weights.to(dtype).contiguous()
    wide = [kernel.to(dtype) for kernel in kernels]
    compiled = compiled_kernel("merge_kernels_backward", wide_dmerged, wide_weights, *wide)
    if compiled is None:
        taps = [
            taps_of(wide_dmerged, kernel.shape[-1], dilation) for kernel, dilation in zip(wide, dilations, strict=True)
        ]
        dweights = torch.stack([(kernel * tap).sum() for kernel, tap in zip(wide, taps, strict=True)])
        dkernels = [weight * tap for weight, tap in zip(wide_weights, taps, strict=True)]
    else:
        dweights = torch.empty_like(wide_weights)
        dkernels = [kernel.new_empty(kernel.shape) for kernel in wide]
        outputs = dweights.data_ptr(), [dkernel.data_ptr() for dkernel in dkernels]
        _run(compiled, wide_dmerged, wide_weights, wide, dilations, *outputs)
    return [dweights.to(weights.dtype)] + [
        dkernel.to(kernel.dtype).contiguous() for dkernel, kernel in zip(dkernels, kernels, strict=True)
    ]


@_merge_kernels_backward.register_fake
def _(dmerged, weights, kernels, dilations):
    return [weights.new_empty(weights.shape)] + [kernel.new_empty(kernel.shape) for kernel in kernels]


def _save(ctx, inputs, output) -> None:
    weights, kernels, ctx.dilations = inputs
    ctx.save_for_backward(weights, *kernels)


def _backward(ctx, dmerged):
    weights, *kernels = ctx.saved_tensors
    dweights, *dkernels = call(_merge_kernels_backward, dmerged, weights, kernels, ctx.dilations)
    return dweights, dkernels, None


_merge_kernels.register_autograd(_backward, setup_context=_save)
for _device in ("cpu", "cuda"):
    _merge_kernels.register_autocast(_device, torch.float32)


def _taps_flops(kernels) -> int:
    return 2 * sum(math.prod(kernel) for kernel in kernels)


@register_flop_formula(torch.ops.srnas_fast.merge_kernels)
def _(weights, kernels, *args, **kwargs) -> int:
    return _taps_flops(kernels)


@register_flop_formula(torch.ops.srnas_fast.merge_kernels_backward)
def _(dmerged, weights, kernels, *args, **kwargs) -> int:
    return 2 * _taps_flops(kernels)
