"""``y = shift + sum_k weights_k (z_k - centres_k)`` over tensors of one shape, each read once."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from srnas_fast.backends import compiled_kernel, triton_kernel
from srnas_fast.errors import InputError
from srnas_fast.primitives.direct import call
from srnas_fast.primitives.flops import register_flop_formula
from srnas_fast.primitives.images import address, check_one_device, dense_format


def weighted_sum_reference(
    weights: Tensor, zs: Sequence[Tensor], shift: Tensor | None = None, centres: Tensor | None = None
) -> Tensor:
    """What ``weighted_sum`` computes, in plain torch."""
    terms = [z if centres is None else z - per_channel(centres[k], z) for k, z in enumerate(zs)]
    y = sum(per_channel(weights[k], z) * z for k, z in enumerate(terms))
    return y if shift is None else y + per_channel(shift, y)


def per_channel(values: Tensor, z: Tensor) -> Tensor:
    """``values`` (C,) as a view that broadcasts over the channels of ``z``; a scalar stays one."""
    return values.view(-1, *[1] * (z.ndim - 2)) if values.ndim else values


def weighted_sum(
    weights: Tensor, zs: Sequence[Tensor], shift: Tensor | None = None, centres: Tensor | None = None
) -> Tensor:
    """``shift + sum_k weights_k * (z_k - centres_k)``: a weighted sum of tensors, per channel where wanted.

    Reads every tensor once, at memory speed in NCHW and in channels_last, slices of channels too; tensors in
    another layout than the first one's are copied into it. float16 and bfloat16 are computed in float32.

    Args:
        weights: (K,), or (K, C) for one weight per channel.
        zs: K tensors of one shape, (N, C, ...) where C is used, any shape otherwise.
        shift: (C,) or None.
        centres: (K, C) or None.

    Returns:
        y, of the shape, type and memory format of ``zs[0]``. Differentiable once in every argument.

    Raises:
        InputError: the shapes do not go together.

    >>> z = torch.arange(4.0).view(1, 2, 1, 2)
    >>> weighted_sum(torch.tensor([2.0, 1.0]), [z, z + 1]).flatten()
    tensor([ 1.,  4.,  7., 10.])
    >>> weighted_sum(torch.tensor([[1.0, 10.0]]), [z], shift=torch.tensor([0.5, 0.0])).flatten()
    tensor([ 0.5000,  1.5000, 20.0000, 30.0000])
    """
    _check(weights, zs, shift, centres)
    return call(_weighted_sum, weights, zs, shift, centres)


def weighted_sum_(
    y: Tensor, weights: Tensor, zs: Sequence[Tensor], shift: Tensor | None = None, centres: Tensor | None = None
) -> Tensor:
    """``y += weighted_sum(...)`` in place, without autograd; ``y`` shares no memory with ``zs``. Returns ``y``.

    >>> y = torch.ones(3)
    >>> weighted_sum_(y, torch.tensor([2.0]), [torch.arange(3.0)])
    tensor([1., 3., 5.])
    """
    _check(weights, zs, shift, centres)
    check_one_device(y, zs[0])
    if y.shape != zs[0].shape:
        raise InputError(f"y has shape {tuple(y.shape)}; give that of zs, {tuple(zs[0].shape)}")
    call(_weighted_sum_, y, weights, zs, shift, centres, mutates=True)
    return y


def weighted_sum_backward(
    dy: Tensor,
    weights: Tensor,
    zs: Sequence[Tensor],
    centres: Tensor | None = None,
    want_weights: bool = True,
    want_zs: Sequence[bool] | None = None,
) -> list[Tensor]:
    """Gradients of ``weighted_sum``, in one pass over memory and not differentiable.

    Args:
        dy: gradient of y.
        weights, zs, centres: as given to ``weighted_sum``; ``zs`` may be empty unless ``want_weights``.
        want_weights: whether ``dweights`` is computed; without it ``zs`` are not read.
        want_zs: K flags, whether dz_k is computed; None: all of them.

    Returns:
        [dweights, dysum, dz_0, ..., dz_(K-1)]: ``dweights`` like ``weights``, the inner products
        <dy, z_k - centres_k>; ``dysum`` (C,), the sums of dy in at least float32, the gradient of ``shift`` ((1,) for
        tensors of fewer than two dimensions; the gradient of ``centres`` is -weights * dysum); ``dz_k`` = weights_k dy.
        Empty tensors where not wanted.

    Raises:
        InputError: the shapes do not go together.

    >>> dy, z = torch.ones(2, 1, 2), torch.arange(4.0).view(2, 1, 2)
    >>> dweights, dysum, dz = weighted_sum_backward(dy, torch.tensor([3.0]), [z])
    >>> dweights, dysum, dz.flatten()
    (tensor([6.]), tensor([4.]), tensor([3., 3., 3., 3.]))
    """
    want_zs = [True] * len(weights) if want_zs is None else want_zs
    if zs or want_weights:
        _check(weights, zs, None, centres)
        if dy.shape != zs[0].shape:
            raise InputError(f"dy has shape {tuple(dy.shape)}; give that of zs, {tuple(zs[0].shape)}")
    check_one_device(dy, weights, *zs)
    if len(want_zs) != len(weights):
        raise InputError(f"want_zs has {len(want_zs)} entries for {len(weights)} weights; give one for each")
    return call(_weighted_sum_backward, dy, weights, zs, centres, want_weights, want_zs)


def _check(weights: Tensor, zs: Sequence[Tensor], shift: Tensor | None, centres: Tensor | None) -> None:
    count = len(zs)
    if not count:
        raise InputError("zs is empty; give at least one tensor")
    shape = zs[0].shape
    for z in zs:
        if z.shape != shape or z.dtype != zs[0].dtype or not z.dtype.is_floating_point:
            given = ", ".join(f"{tuple(z.shape)} {z.dtype}" for z in zs)
            raise InputError(f"zs are {given}; give tensors of one shape and one floating type")
    check_one_device(*zs, weights, shift, centres)
    channels = shape[1] if len(shape) > 1 else None
    fits = weights.shape == (count,) or weights.shape == (count, channels)
    fits = fits and (shift is None or shift.shape == (channels,))
    if not (fits and (centres is None or centres.shape == (count, channels))):
        rest = [None if values is None else tuple(values.shape) for values in (shift, centres)]
        raise InputError(
            f"weights {tuple(weights.shape)}, shift {rest[0]} and centres {rest[1]} do not go with {count} tensors "
            f"of shape {tuple(shape)}; for (N, C, ...) give weights (K,) or (K, C), shift (C,), centres (K, C)"
        )


def channel_layout(z: Tensor, form: torch.memory_format) -> tuple[int, int, int]:
    """(size, channels, inner) of a tensor that is dense in ``form``: its element i is in channel i // inner % channels.

    A tensor of fewer than two dimensions has one channel.
    """
    size = z.numel()
    if z.ndim < 2:
        return size, 1, 1
    rows = z.shape[0] * z.shape[1]
    return size, z.shape[1], size // rows if rows and form == torch.contiguous_format else 1


def _readable(z: Tensor, form: torch.memory_format) -> tuple[Tensor, tuple[int, int]]:
    """z as the compiled code can read it, and its blocks (Blocks in csrc/cpu/weighted_sum.h): z itself where it is
    dense in ``form`` or a slice of the channels of such a tensor, else a copy."""
    if z.is_contiguous(memory_format=form):
        return z, (1, 1)
    if form is torch.contiguous_format and z.ndim > 1 and z[0].is_contiguous():
        return z, (z[0].numel(), z.stride(0))
    if form is torch.channels_last and z.stride(1) == 1:
        _, channels, height, width = z.shape
        pixel = z.stride(3)
        if pixel >= channels and z.stride(2) == width * pixel and z.stride(0) == height * width * pixel:
            return z, (channels, pixel)
    return z.contiguous(memory_format=form), (1, 1)


def _read(zs: Sequence[Tensor], form: torch.memory_format) -> tuple[list[Tensor], list[int], list[int]]:
    """The tensors to keep while compiled code reads them, their addresses and their blocks."""
    found = [_readable(z, form) for z in zs]
    return [z for z, _ in found], [z.data_ptr() for z, _ in found], [size for _, sizes in found for size in sizes]


def _add(y: Tensor, accumulate: bool, weights: Tensor, zs: Sequence[Tensor], shift, centres) -> bool:
    """Writes or adds the weighted sum into a dense ``y`` by compiled code; false where there is none for it."""
    given = (y, *zs, weights, *(extra for extra in (shift, centres) if extra is not None))
    kernel = compiled_kernel("weighted_sum", *given)
    if kernel is None or not y.numel():
        return False
    form = dense_format(y)
    zs, places, blocks = _read(zs, form)
    weights, shift, centres = (None if v is None else v.contiguous() for v in (weights, shift, centres))
    flat = weights.ndim == 1 and shift is None and centres is None
    kernel(
        y.data_ptr(),
        accumulate,
        weights.data_ptr(),
        weights.ndim == 2,
        places,
        blocks,
        address(shift),
        address(centres),
        (y.numel(), 1, 1) if flat else channel_layout(y, form),
    )
    return True


def _cast(dtype: torch.dtype, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The tensors in ``dtype``; asking first, since even a ``to`` that does nothing costs most of a microsecond."""
    return [tensor if tensor is None or tensor.dtype is dtype else tensor.to(dtype) for tensor in tensors]


@torch.library.custom_op("srnas_fast::weighted_sum", mutates_args=())
def _weighted_sum(weights: Tensor, zs: Sequence[Tensor], shift: Tensor | None, centres: Tensor | None) -> Tensor:
    dtype = torch.promote_types(zs[0].dtype, torch.float32)
    form = dense_format(zs[0])
    kernel = triton_kernel("weighted_sum", *zs)
    if kernel:
        y = torch.empty_like(zs[0], memory_format=form)
        kernel(y, False, weights, zs, shift, centres)
        return y
    weights, shift, centres, *cast = _cast(dtype, [weights, shift, centres, *zs])
    y = torch.empty_like(cast[0], memory_format=form)
    if not _add(y, False, weights, cast, shift, centres):
        y = weighted_sum_reference(weights, cast, shift, centres).contiguous(memory_format=form)
    return _cast(zs[0].dtype, [y])[0]


@_weighted_sum.register_fake
def _(weights, zs, shift, centres):
    return torch.empty_like(zs[0], memory_format=dense_format(zs[0]))


@torch.library.custom_op("srnas_fast::weighted_sum_", mutates_args=("y",))
def _weighted_sum_(
    y: Tensor, weights: Tensor, zs: Sequence[Tensor], shift: Tensor | None, centres: Tensor | None
) -> None:
    kernel = triton_kernel("weighted_sum", y, *zs)
    if kernel:
        kernel(y, True, weights, zs, shift, centres)
        return
    dense = y.is_contiguous(memory_format=dense_format(y))
    if not (dense and _add(y, True, weights, zs, shift, centres)):
        y.add_(_weighted_sum(weights, zs, shift, centres))


@_weighted_sum_.register_fake
def _(y, weights, zs, shift, centres):
    return None


@torch.library.custom_op("srnas_fast::weighted_sum_backward", mutates_args=())
def _weighted_sum_backward(
    dy: Tensor,
    weights: Tensor,
    zs: Sequence[Tensor],
    centres: Tensor | None,
    want_weights: bool,
    want_zs: Sequence[bool],
) -> list[Tensor]:
    outputs = _empty_gradients(dy, weights, zs, want_weights, want_zs)
    kernel = triton_kernel("weighted_sum_backward", dy, *zs)
    if kernel:
        dweights, dysum, *dzs = outputs
        wanted = [dz if want else None for dz, want in zip(dzs, want_zs, strict=True)]
        kernel(dweights if want_weights else None, dysum, wanted, dy, weights, zs if want_weights else [], centres)
        return outputs
    dtype = torch.promote_types(dy.dtype, torch.float32)
    read = zs if want_weights else []
    form = dense_format(zs[0] if zs else dy)
    wide_dy, wide_weights, wide_centres, *read = _cast(dtype, [dy, weights, centres, *read])
    given = (wide_dy, wide_weights, *read, *([] if centres is None else [wide_centres]))
    kernel = compiled_kernel("weighted_sum_backward", *given)
    if kernel is None or not dy.numel():
        results = _backward_reference(wide_dy, wide_weights, read, wide_centres, want_zs)
        return [
            result.to(out.dtype).contiguous(memory_format=dense_format(out)) if out.numel() else out
            for result, out in zip(results, outputs, strict=True)
        ]
    wide = _cast(dtype, outputs)  # the same tensors unless they are of half precision
    wide_dy = wide_dy.contiguous(memory_format=form)
    read, places, blocks = _read(read, form)
    wide_weights, wide_centres = (None if v is None else v.contiguous() for v in (wide_weights, wide_centres))
    kernel(
        wide_dy.data_ptr(),
        wide_weights.data_ptr(),
        weights.ndim == 2,
        places,
        blocks,
        address(wide_centres),
        channel_layout(wide_dy, form),
        wide[0].data_ptr(),
        wide[1].data_ptr(),
        [out.data_ptr() if want else 0 for out, want in zip(wide[2:], want_zs, strict=True)],
    )
    return [_cast(out.dtype, [result])[0] for result, out in zip(wide, outputs, strict=True)]


def _empty_gradients(dy: Tensor, weights: Tensor, zs: Sequence[Tensor], want_weights: bool, want_zs) -> list[Tensor]:
    form = dense_format(zs[0] if zs else dy)
    dweights = torch.empty_like(weights, memory_format=torch.contiguous_format) if want_weights else dy.new_empty(0)
    dysum = dy.new_empty(dy.shape[1] if dy.ndim > 1 else 1, dtype=torch.promote_types(dy.dtype, torch.float32))
    return [dweights, dysum] + [torch.empty_like(dy, memory_format=form) if w else dy.new_empty(0) for w in want_zs]


def _backward_reference(dy: Tensor, weights: Tensor, zs, centres: Tensor | None, want_zs) -> list[Tensor]:
    def channel_sums(values: Tensor) -> Tensor:
        return values.transpose(0, 1).flatten(1).sum(1) if values.ndim > 1 else values.sum().view(1)

    products = [channel_sums(dy * (z if centres is None else z - per_channel(centres[k], z))) for k, z in enumerate(zs)]
    dweights = torch.stack(products) if products else dy.new_empty(0)
    if products and weights.ndim == 1:
        dweights = dweights.sum(1)
    dzs = [per_channel(weights[k], dy) * dy if want else dy.new_empty(0) for k, want in enumerate(want_zs)]
    return [dweights, channel_sums(dy), *dzs]


@_weighted_sum_backward.register_fake
def _(dy, weights, zs, centres, want_weights, want_zs):
    return _empty_gradients(dy, weights, zs, want_weights, want_zs)


def _save(ctx, inputs, output) -> None:
    weights, zs, _, centres = inputs
    ctx.save_for_backward(weights, centres, *(zs if weights.requires_grad else []))


def _backward(ctx, dy):
    weights, centres, *zs = ctx.saved_tensors
    want_weights, want_zs, want_shift, want_centres = ctx.needs_input_grad
    dweights, dysum, *dzs = call(_weighted_sum_backward, dy, weights, zs, centres, want_weights, want_zs)
    dcentres = None
    if want_centres:
        dcentres = -(weights if weights.ndim == 2 else weights[:, None]) * dysum
    return (
        dweights if want_weights else None,
        [dz if want else None for dz, want in zip(dzs, want_zs, strict=True)],
        dysum if want_shift else None,
        dcentres,
    )


_weighted_sum.register_autograd(_backward, setup_context=_save)
for _device in ("cpu", "cuda"):
    _weighted_sum.register_autocast(_device, torch.float32)


@register_flop_formula(torch.ops.srnas_fast.weighted_sum)
def _(weights, zs, *args, **kwargs) -> int:
    return 2 * len(zs) * math.prod(zs[0])


@register_flop_formula(torch.ops.srnas_fast.weighted_sum_)
def _(y, weights, zs, *args, **kwargs) -> int:
    return 2 * len(zs) * math.prod(y)


@register_flop_formula(torch.ops.srnas_fast.weighted_sum_backward)
def _(dy, weights, zs, centres, want_weights, want_zs, **kwargs) -> int:
    return 2 * (len(zs) * want_weights + sum(want_zs)) * math.prod(dy)
