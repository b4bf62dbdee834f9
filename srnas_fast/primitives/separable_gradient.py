"""Gradients through depthwise convolutions whose outputs ``d_k = depthwise_k * x`` are computed again, never stored.

They serve the backward passes of ``separable_sum`` and ``separable_moments``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from srnas_fast.backends import compiled_kernel, triton_kernel
from srnas_fast.errors import InputError
from srnas_fast.primitives.direct import call
from srnas_fast.primitives.flops import register_flop_formula
from srnas_fast.primitives.images import (
    address,
    addresses,
    cast,
    check_one_device,
    convolution_backward,
    dense_format,
    output_size,
    wide,
)
from srnas_fast.primitives.multi_depthwise import (
    check_depthwise,
    depthwise_macs,
    depthwise_sizes,
    multi_depthwise_reference,
)


def separable_gradient_reference(
    x: Tensor,
    dy: Tensor | None,
    depthwise: Sequence[Tensor],
    left: Sequence[Tensor] | None,
    right: Sequence[Tensor] | None,
    offsets: Tensor | None,
    centres: Tensor | None,
    dilations: Sequence[int],
    stride: int = 1,
    want_x: bool = True,
    want_depthwise: bool = True,
    want_products: bool = True,
) -> list[Tensor]:
    """What ``separable_gradient`` computes, in plain torch."""
    dx, ddepthwise, products = torch.zeros_like(x), [], []
    for k, (kernel, dilation) in enumerate(zip(depthwise, dilations, strict=True)):
        (d,) = multi_depthwise_reference(x, [kernel], [dilation], stride)
        d = d if centres is None else d - centres[k].view(-1, 1, 1)
        if want_x or want_depthwise:
            dd = torch.zeros_like(d) if offsets is None else offsets[k].view(-1, 1, 1).expand_as(d)
            if dy is not None:
                dd = dd + torch.einsum("co,nohw->nchw", left[k], dy)
            if right:
                dd = dd + torch.einsum("ce,nehw->nchw", right[k], d)
            dx_k, dkernel = convolution_backward(dd, x, kernel, dilation, stride, want_x, want_depthwise)
            dx = dx + dx_k if want_x else dx
            ddepthwise.append(dkernel)
        if want_products:
            products.append(torch.einsum("nohw,nchw->oc", dy, d))
    return [
        dx if want_x else x.new_empty(0),
        x.new_empty(0) if dy is None else dy.sum((0, 2, 3)),
        *(ddepthwise if want_depthwise else [x.new_empty(0) for _ in depthwise]),
        *(products if want_products else [x.new_empty(0) for _ in depthwise]),
    ]


def separable_gradient(
    x: Tensor,
    dy: Tensor | None,
    depthwise: Sequence[Tensor],
    left: Sequence[Tensor] | None,
    right: Sequence[Tensor] | None,
    offsets: Tensor | None,
    centres: Tensor | None,
    dilations: Sequence[int],
    stride: int = 1,
    want_x: bool = True,
    want_depthwise: bool = True,
    want_products: bool = True,
) -> list[Tensor]:
    """Gradients through depthwise convolutions whose outputs d_k are computed again, not read. Not differentiable.

    With ``dd_k = left_k dy + right_k (d_k - centres_k) + offsets_k`` the results are ``dx = sum_k depthwise_k^T dd_k``,
    ``ddepthwise_k``, the weight gradient of the depthwise convolution for ``dd_k``, ``products_k``, the (O, C) sum over
    pixels of ``dy (d_k - centres_k)^T``, and ``dysum``, the sum over pixels of ``dy``.

    Args:
        x: (N, C, H, W), of any strides.
        dy: (N, O, Ho, Wo), of any strides, or None for zeros.
        depthwise: K tensors (C, 1, k, k), k odd.
        left: K tensors (C, O); None without ``dy``.
        right: K tensors (C, C) or None for zeros.
        offsets: (K, C) or None for zeros.
        centres: (K, C) or None for zeros.
        dilations: K whole numbers.
        stride: of the depthwise convolutions.
        want_x, want_depthwise, want_products: which results are computed.

    Returns:
        [dx, dysum, ddepthwise_0, ..., products_0, ...]; empty tensors where not wanted (``dysum``: without ``dy``).
        ``dx`` is of the type and memory format of ``x``, each ``ddepthwise_k`` of its kernel's type, the sums of the
        type of ``x`` but at least float32.

    Raises:
        InputError: the shapes do not go together, or products are wanted without ``dy``.

    >>> x, dy = torch.ones(1, 1, 1, 2), torch.tensor([1.0, 2.0]).view(1, 1, 1, 2)
    >>> one = torch.full((1, 1, 1, 1), 3.0)
    >>> dx, dysum, dkernel, product = separable_gradient(x, dy, [one], [torch.ones(1, 1)], None, None, None, [1])
    >>> dx.flatten(), dysum, dkernel.flatten(), product
    (tensor([3., 6.]), tensor([3.]), tensor([3.]), tensor([[9.]]))
    """
    left, right = _check_gradient(x, dy, depthwise, left, right, offsets, centres, dilations, stride, want_products)
    rest = (depthwise, left, right, offsets, centres, dilations, stride)
    return call(gradient_op, x, dy, *rest, want_x, want_depthwise, want_products)


def separable_gradient_(
    dx: Tensor,
    x: Tensor,
    dy: Tensor | None,
    depthwise: Sequence[Tensor],
    left: Sequence[Tensor] | None,
    right: Sequence[Tensor] | None,
    offsets: Tensor | None,
    centres: Tensor | None,
    dilations: Sequence[int],
    stride: int = 1,
    want_depthwise: bool = True,
    want_products: bool = True,
) -> list[Tensor]:
    """As ``separable_gradient``, but adds to ``dx`` in place; ``dx`` shares no memory with ``x`` and ``dy``.

    Returns:
        [dysum, ddepthwise_0, ..., products_0, ...].

    >>> x, dx = torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2)
    >>> one = torch.full((1, 1, 1, 1), 3.0)
    >>> results = separable_gradient_(dx, x, 2 * x, [one], [torch.ones(1, 1)], None, None, None, [1])
    >>> dx.flatten(), results[0]
    (tensor([7., 7.]), tensor([4.]))
    """
    left, right = _check_gradient(x, dy, depthwise, left, right, offsets, centres, dilations, stride, want_products)
    check_shape("dx", dx, x.shape)
    rest = (offsets, centres, dilations, stride, want_depthwise, want_products)
    dysum, flat, products = call(_separable_gradient_, dx, x, dy, depthwise, left, right, *rest, mutates=True)
    kernels = flat.split([w.numel() for w in depthwise]) if want_depthwise else [flat] * len(depthwise)
    shaped = [g.view(w.shape) if want_depthwise else g for g, w in zip(kernels, depthwise, strict=True)]
    return [dysum, *(g.to(w.dtype) for g, w in zip(shaped, depthwise, strict=True)), *products]


def check_shape(name: str, tensor: Tensor | None, shape: Sequence[int]) -> None:
    """Refuses a tensor of another shape; None passes. Raises InputError."""
    if tensor is not None and tuple(tensor.shape) != tuple(shape):
        raise InputError(f"{name} has shape {tuple(tensor.shape)}; give {tuple(shape)}")


def check_matrices(name: str, matrices: Sequence[Tensor], count: int, shape: Sequence[int]) -> None:
    """Refuses what is not one matrix of the shape for each depthwise kernel; raises InputError."""
    if len(matrices) != count:
        raise InputError(f"there are {len(matrices)} {name} matrices for {count} depthwise kernels; give one for each")
    for matrix in matrices:
        check_shape(f"a {name} matrix", matrix, shape)


def _check_gradient(x, dy, depthwise, left, right, offsets, centres, dilations, stride, want_products):
    check_depthwise(x, depthwise, dilations, stride)
    check_one_device(x, dy, *(left or []), *(right or []), offsets, centres)
    count, channels = len(depthwise), x.shape[1]
    if dy is None:
        if want_products or left:
            raise InputError("products or left matrices without dy; give dy, or want_products=False and left=None")
    else:
        if dy.ndim != 4 or not dy.shape[1]:
            raise InputError(f"dy has shape {tuple(dy.shape)}; give (N, O, Ho, Wo)")
        check_shape("dy", dy, (x.shape[0], dy.shape[1], *output_size(x, stride)))
        check_matrices("left", left or [], count, (channels, dy.shape[1]))
    if right:
        check_matrices("right", right, count, (channels, channels))
    check_shape("offsets", offsets, (count, channels))
    check_shape("centres", centres, (count, channels))
    return list(left or []), list(right or [])


def _gradient(
    kernel, dx, accumulate, x, dy, depthwise, left, right, offsets, centres, dilations, stride, results
) -> bool:
    """Fills ``dx`` (None: not wanted) and ``results`` by Triton's kernel, None where it does not serve, or by compiled
    code; false where there is neither for these tensors."""
    if kernel:
        dysum, kernels, products = results[0], results[1 : 1 + len(depthwise)], results[1 + len(depthwise) :]
        wanted = (None if dy is None else dysum, *(part if part[0].numel() else None for part in (kernels, products)))
        kernel(dx, *wanted, accumulate, x, dy, depthwise, left, right, offsets, centres, dilations, stride)
        return True
    tensors = [tensor for tensor in (x, dy, dx) if tensor is not None]
    compiled = compiled_kernel("separable_gradient", *tensors)
    if compiled is None:
        return False
    dtype, count = x.dtype, len(depthwise)
    depthwise, left, right = (cast(dtype, matrices) for matrices in (depthwise, left, right))
    offsets, centres = (None if values is None else cast(dtype, [values])[0] for values in (offsets, centres))
    outputs = 0 if dy is None else dy.shape[1]
    kernels, products = results[1 : 1 + count], results[1 + count :]
    kernels, products = kernels if kernels[0].numel() else [], products if products[0].numel() else []
    compiled(
        x.data_ptr(),
        x.shape,
        x.stride(),
        address(dy),
        outputs,
        [0] * 4 if dy is None else dy.stride(),
        addresses(depthwise),
        depthwise_sizes(depthwise),
        list(dilations),
        stride,
        addresses(left),
        addresses(right),
        address(offsets),
        address(centres),
        address(dx),
        [0] * 4 if dx is None else dx.stride(),
        accumulate,
        0 if dy is None else results[0].data_ptr(),
        addresses(kernels),
        addresses(products),
    )
    return True


def _empty_results(x, dy, depthwise, want_depthwise, want_products, dtype=None) -> list[Tensor]:
    """[dysum, ddepthwise_0, ..., products_0, ...] to be filled."""
    sums = wide(x)
    dysum = x.new_empty(0 if dy is None else dy.shape[1], dtype=sums)
    dense = torch.contiguous_format
    kernels = [
        torch.empty_like(w, dtype=dtype, memory_format=dense) if want_depthwise else w.new_empty(0, dtype=dtype)
        for w in depthwise
    ]
    shape = (dy.shape[1], x.shape[1]) if want_products else (0,)
    return [dysum, *kernels, *(x.new_empty(shape, dtype=sums) for _ in depthwise)]


def in_type(dtype: torch.dtype, function, *arguments):
    """The function with all its tensors cast to one type: a reference does not mix types as the kernels do."""

    def convert(value):
        if isinstance(value, Tensor):
            return value.to(dtype)
        return [convert(item) for item in value] if isinstance(value, (list, tuple)) else value

    return function(*(convert(argument) for argument in arguments))


# The backward passes of other primitives call it too: what they give needs no check.
@torch.library.custom_op("srnas_fast::separable_gradient", mutates_args=())
def gradient_op(
    x: Tensor,
    dy: Tensor | None,
    depthwise: Sequence[Tensor],
    left: Sequence[Tensor],
    right: Sequence[Tensor],
    offsets: Tensor | None,
    centres: Tensor | None,
    dilations: Sequence[int],
    stride: int,
    want_x: bool,
    want_depthwise: bool,
    want_products: bool,
) -> list[Tensor]:
    dtype = wide(x)
    x_type, kernel_types = x.dtype, [w.dtype for w in depthwise]
    kernel = triton_kernel("separable_gradient", x, dy)
    if kernel is None:  # which reads and writes half precision itself
        x, dy = x.to(dtype), None if dy is None else dy.to(dtype)
    dx = torch.empty_like(x, memory_format=dense_format(x)) if want_x else None
    results = _empty_results(x, dy, depthwise, want_depthwise, want_products, dtype)
    rest = (x, dy, depthwise, left, right, offsets, centres, dilations, stride)
    if not _gradient(kernel, dx, False, *rest, results):
        wanted = (want_x, want_depthwise, want_products)
        dx, *results = in_type(dtype, separable_gradient_reference, *rest, *wanted)
        dx = dx.contiguous(memory_format=dense_format(x)) if want_x else None
    dx = x.new_empty(0) if dx is None else dx
    return [dx.to(x_type), *_in_kernel_types(results, kernel_types)]


def _in_kernel_types(results: list[Tensor], types: list[torch.dtype]) -> list[Tensor]:
    dysum, kernels, products = results[0], results[1 : 1 + len(types)], results[1 + len(types) :]
    return [dysum, *(w.to(dtype).contiguous() for w, dtype in zip(kernels, types, strict=True)), *products]


@gradient_op.register_fake
def _(
    x,
    dy,
    depthwise,
    left,
    right,
    offsets,
    centres,
    dilations,
    stride,
    want_x,
    want_depthwise,
    want_products,
):
    dx = torch.empty_like(x, memory_format=dense_format(x)) if want_x else x.new_empty(0)
    return [dx, *_empty_results(x, dy, depthwise, want_depthwise, want_products)]


@torch.library.custom_op("srnas_fast::separable_gradient_", mutates_args=("dx",))
def _separable_gradient_(
    dx: Tensor,
    x: Tensor,
    dy: Tensor | None,
    depthwise: Sequence[Tensor],
    left: Sequence[Tensor],
    right: Sequence[Tensor],
    offsets: Tensor | None,
    centres: Tensor | None,
    dilations: Sequence[int],
    stride: int,
    want_depthwise: bool,
    want_products: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    # [dysum, all ddepthwise in one row, products (K, O, C)]: an operator that mutates cannot return a list
    dtype = wide(x)
    results = _empty_results(x, dy, depthwise, want_depthwise, want_products, dtype)
    rest = (x, dy, depthwise, left, right, offsets, centres, dilations, stride)
    if not _gradient(triton_kernel("separable_gradient", x, dy, dx), dx, True, *rest, results):
        added, *results = gradient_op(*rest, True, want_depthwise, want_products)
        dx.add_(added)
    count = len(depthwise)
    flat = torch.cat([kernel.flatten().to(dtype) for kernel in results[1 : 1 + count]])
    return results[0], flat, torch.stack(results[1 + count :])


@_separable_gradient_.register_fake
def _(dx, x, dy, depthwise, left, right, offsets, centres, dilations, stride, want_depthwise, want_products):
    results = _empty_results(x, dy, depthwise, want_depthwise, want_products, wide(x))
    flat = x.new_empty(sum(kernel.numel() for kernel in results[1 : 1 + len(depthwise)]), dtype=wide(x))
    return results[0], flat, torch.stack(results[1 + len(depthwise) :])


def output_pixels(x: Sequence[int], stride: int) -> int:
    """Pixels of a convolution's output for an input of the shape ``x``."""
    return x[0] * ((x[2] - 1) // stride + 1) * ((x[3] - 1) // stride + 1)


def _gradient_flops(x, dy, depthwise, right, stride, want_x, want_depthwise, want_products) -> int:
    outputs = 0 if dy is None else dy[1]
    want_dd = want_x or want_depthwise
    per_pixel = len(depthwise) * x[1] * (outputs * (want_products + want_dd) + (x[1] * want_dd if right else 0))
    convolutions = want_x + want_depthwise + (want_products or (bool(right) and want_dd))
    return 2 * (convolutions * depthwise_macs(x, depthwise, stride) + per_pixel * output_pixels(x, stride))


@register_flop_formula(torch.ops.srnas_fast.separable_gradient)
def _(x, dy, depthwise, left, right, offsets, centres, dilations, stride, *wanted, **kwargs) -> int:
    return _gradient_flops(x, dy, depthwise, right, stride, *wanted)


@register_flop_formula(torch.ops.srnas_fast.separable_gradient_)
def _(dx, x, dy, depthwise, left, right, offsets, centres, dilations, stride, *wanted, **kwargs) -> int:
    return _gradient_flops(x, dy, depthwise, right, stride, True, *wanted)
