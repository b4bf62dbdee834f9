"""Dense convolutions of few channels: forward, input and kernel gradients, and the forward pass with its moments.

Dense convolutions are otherwise left to torch. Its oneDNN has its vectors run over channels, in blocks of 16 (AVX-512)
or 8 lanes, so that 12 or 20 channels waste a quarter or more of them; NCHW it copies to such blocks and back, and a
single tap gives it too little to do. The search spaces here have such convolutions everywhere, and their dense
candidates then take most of a search step. The compiled kernels let the vectors run over pixels instead, which wastes
nothing whatever the channels are.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from srnas_fast.backends import compiled_kernel
from srnas_fast.errors import InputError
from srnas_fast.primitives.channel_moments import channel_moments
from srnas_fast.primitives.direct import call
from srnas_fast.primitives.flops import register_flop_formula
from srnas_fast.primitives.images import (
    cast,
    check_images,
    check_one_device,
    convolution_backward,
    dense_format,
    empty_gradients,
    empty_output,
    wide,
)
from srnas_fast.primitives.weighted_sum import weighted_sum

MOST_CHANNELS = 64  # of an input or output; with more, oneDNN's waste is small beside the rest
BLOCK = 16  # channels that oneDNN computes at once: where both counts are multiples, it wastes nothing


def narrow_convolution_reference(x: Tensor, kernel: Tensor, bias: Tensor | None = None, dilation: int = 1) -> Tensor:
    """What ``narrow_convolution`` computes, in plain torch."""
    return F.conv2d(x, kernel, bias, padding=dilation * (kernel.shape[-1] // 2), dilation=dilation)


def serves(x: Tensor, kernel: Tensor) -> bool:
    """Whether the functions here run compiled kernels that are faster than torch's convolution for these tensors.

    True for float32 and float64 on the CPU, where the compiled backend is there and there are at most 64 channels on
    either side; but not for kernels of several taps and multiples of 16 on both sides in channels_last. Else they call
    torch's convolution.

    Measured: how many times as fast as oneDNN it is, forward and both gradients together, for 1x1 and in the worst of
    3x3 and 5x5 with dilation 1 and 2 and 7x7; float32, 64 x 64 pixels, one thread of a Zen 5 with AVX-512, torch 2.13::

        channels on both sides    4    8   12   16   20   24   28   32   36   40   44   48   52   56   60   64
        channels_last, 1x1      3.4  3.8  2.0  1.7  1.9  1.9  2.2  1.8  2.0  2.0  2.1  2.0  2.0  2.1  2.2  2.0
        channels_last           2.6  1.8  1.4  .98  1.5  1.3  1.1  .91  1.2  1.1  1.0  .92  1.2  1.1  1.0  .93
        NCHW, 1x1               1.3  1.5  1.9  1.7  2.0  2.0  2.2  2.0  2.2  2.2  2.2  2.1  2.2  2.2  2.3  2.1
        NCHW                    5.9  2.7  2.6  1.1  2.5  1.8  1.3  1.0  1.8  1.5  1.2  1.0  1.5  1.3  1.1  1.0

    >>> serves(torch.ones(1, 2, 3, 3), torch.ones(65, 2, 3, 3))
    False
    """
    return _compiled("narrow_convolution", x, kernel) is not None


def _compiled(name: str, x: Tensor, kernel: Tensor, *others: Tensor):
    """The compiled kernel of that name if it serves, else None."""
    outputs, channels, size, _ = kernel.shape
    if max(outputs, channels) > MOST_CHANNELS:
        return None
    if size > 1 and outputs % BLOCK == channels % BLOCK == 0 and dense_format(x) == torch.channels_last:
        return None
    return compiled_kernel(name, x, kernel, *others)


def narrow_convolution(x: Tensor, kernel: Tensor, bias: Tensor | None = None, dilation: int = 1) -> Tensor:
    """A dense convolution, zero-padded to the size of its input; fast for few channels, see ``serves``.

    float16 and bfloat16 are computed in float32.

    Args:
        x: (N, C, H, W), of any strides.
        kernel: (O, C, k, k), k odd.
        bias: (O,), or None for zeros.
        dilation: a whole number from 1 up.

    Returns:
        (N, O, H, W) of the type and memory format of ``x``. Differentiable once.

    Raises:
        InputError: the shapes do not go together.

    Equivalent to ``F.conv2d(x, kernel, bias, padding=dilation * (k // 2), dilation=dilation)``.

    >>> narrow_convolution(torch.ones(1, 2, 3, 3), torch.ones(1, 2, 3, 3))
    tensor([[[[ 8., 12.,  8.],
              [12., 18., 12.],
              [ 8., 12.,  8.]]]])
    """
    _check(x, kernel, bias, dilation)
    return call(_narrow_convolution, x, kernel, bias, dilation)


def narrow_convolution_moments(
    x: Tensor, kernel: Tensor, bias: Tensor | None = None, dilation: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """``z = narrow_convolution(...)`` with the mean (O,) and the biased variance (O,) of each of its channels.

    The moments are taken while a part of ``z`` is in the cache: centred, parts merged in float64 as in
    ``channel_moments``. Arguments as in ``narrow_convolution``, with a pixel at least. Differentiable once.

    Raises:
        InputError: the shapes do not go together, or there are no pixels.

    >>> z, mean, variance = narrow_convolution_moments(torch.tensor([[[[1.0, 3.0]]]]), torch.full((1, 1, 1, 1), 2.0))
    >>> z, mean, variance
    (tensor([[[[2., 6.]]]]), tensor([4.]), tensor([4.]))
    """
    _check(x, kernel, bias, dilation)
    if not len(x):
        raise InputError(f"x is {tuple(x.shape)}; the moments of no images are not defined, give one at least")
    return call(_narrow_convolution_moments, x, kernel, bias, dilation)


def narrow_convolution_backward(
    dz: Tensor, x: Tensor, kernel: Tensor, dilation: int = 1, want_x: bool = True, want_kernel: bool = True
) -> list[Tensor]:
    """``[dx, dkernel]`` of ``narrow_convolution`` from the gradient ``dz`` (N, O, H, W) of its output.

    ``dx`` has the memory format of ``x``; what is not wanted is empty. The bias has the gradient ``dz.sum((0, 2, 3))``.
    Not differentiable.

    Raises:
        InputError: the shapes do not go together.

    >>> x, kernel = torch.ones(1, 2, 3, 3), torch.ones(1, 2, 3, 3)
    >>> dx, dkernel = narrow_convolution_backward(torch.ones(1, 1, 3, 3), x, kernel)
    >>> dx[0, 0, 0], dkernel[0, 0, 0]
    (tensor([4., 6., 4.]), tensor([4., 6., 4.]))
    """
    _check(x, kernel, None, dilation)
    shape = (x.shape[0], kernel.shape[0], *x.shape[2:])
    if dz.shape != shape:
        raise InputError(f"dz has shape {tuple(dz.shape)}; for this input and kernel give {shape}")
    return call(_narrow_convolution_backward, dz, x, kernel, dilation, want_x, want_kernel)


def _check(x: Tensor, kernel: Tensor, bias: Tensor | None, dilation: int) -> None:
    check_images(x)
    check_one_device(x, kernel, bias)
    shape = tuple(kernel.shape)
    if len(shape) != 4 or not shape[0] or shape[1] != x.shape[1] or shape[2] != shape[3] or shape[3] % 2 == 0:
        raise InputError(f"the kernel has shape {shape}; for x {tuple(x.shape)} give (O, {x.shape[1]}, k, k), k odd")
    if bias is not None and bias.shape != shape[:1]:
        raise InputError(f"the bias has shape {tuple(bias.shape)}; give {shape[:1]}, one number per output channel")
    if dilation < 1:
        raise InputError(f"the dilation is {dilation}; give a whole number from 1 up")


def _sizes(x: Tensor, kernel: Tensor, dilation: int) -> list[int]:
    n, channels, height, width = x.shape
    return [n, channels, kernel.shape[0], height, width, kernel.shape[-1], dilation]


def _forward(x: Tensor, kernel: Tensor, bias: Tensor | None, dilation: int, moments: bool) -> list[Tensor]:
    """[z] or [z, mean, variance]."""
    dtype = wide(x)
    wide_x, (kernel, *biases) = x.to(dtype), cast(dtype, [kernel] if bias is None else [kernel, bias])
    compiled = _compiled("narrow_convolution", wide_x, kernel, *biases)
    if compiled is None:
        z = narrow_convolution_reference(wide_x, kernel, *(biases or [None]), dilation)
        z = z.contiguous(memory_format=dense_format(x))
        results = [z, *(channel_moments(z) if moments else ())]
    else:
        z = empty_output(x, kernel.shape[0], 1, dtype)
        results = [z, *(z.new_empty(z.shape[1]) for _ in range(2 * moments))]
        compiled(
            _sizes(x, kernel, dilation),
            wide_x.data_ptr(),
            wide_x.stride(),
            kernel.data_ptr(),
            biases[0].data_ptr() if biases else 0,
            z.data_ptr(),
            z.stride(),
            *([out.data_ptr() for out in results[1:]] or [0, 0]),
        )
    return [out.to(x.dtype) for out in results]


@torch.library.custom_op("srnas_fast::narrow_convolution", mutates_args=())
def _narrow_convolution(x: Tensor, kernel: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    return _forward(x, kernel, bias, dilation, moments=False)[0]


@_narrow_convolution.register_fake
def _(x, kernel, bias, dilation):
    return empty_output(x, kernel.shape[0], 1, x.dtype)


@torch.library.custom_op("srnas_fast::narrow_convolution_moments", mutates_args=())
def _narrow_convolution_moments(
    x: Tensor, kernel: Tensor, bias: Tensor | None, dilation: int
) -> tuple[Tensor, Tensor, Tensor]:
    z, mean, variance = _forward(x, kernel, bias, dilation, moments=True)
    return z, mean, variance


@_narrow_convolution_moments.register_fake
def _(x, kernel, bias, dilation):
    outputs = kernel.shape[0]
    return empty_output(x, outputs, 1, x.dtype), x.new_empty(outputs), x.new_empty(outputs)


@torch.library.custom_op("srnas_fast::narrow_convolution_backward", mutates_args=())
def _narrow_convolution_backward(
    dz: Tensor, x: Tensor, kernel: Tensor, dilation: int, want_x: bool, want_kernel: bool
) -> list[Tensor]:
    outputs = empty_gradients(x, [kernel], want_x, want_kernel)
    dtype = wide(x)
    wide_dz, wide_x, (wide_kernel,) = dz.to(dtype), x.to(dtype), cast(dtype, [kernel])
    compiled = _compiled("narrow_convolution_backward", wide_x, wide_kernel, wide_dz)
    if compiled is None:
        gradients = convolution_backward(wide_dz, wide_x, wide_kernel, dilation, 1, want_x, want_kernel)
        for out, gradient in zip(outputs, gradients, strict=True):
            if gradient is not None and out.numel():
                out.copy_(gradient)
        return outputs
    dx, dkernel = [out.to(dtype) for out in outputs]  # the same tensors unless they are of another type
    compiled(
        _sizes(x, kernel, dilation),
        wide_dz.data_ptr(),
        wide_dz.stride(),
        wide_x.data_ptr(),
        wide_x.stride(),
        wide_kernel.data_ptr(),
        dx.data_ptr() if want_x else 0,
        dx.stride() if want_x else [0] * 4,
        dkernel.data_ptr() if want_kernel else 0,
    )
    return [dx.to(x.dtype), dkernel.to(kernel.dtype)]


@_narrow_convolution_backward.register_fake
def _(dz, x, kernel, dilation, want_x, want_kernel):
    return empty_gradients(x, [kernel], want_x, want_kernel)


def _save(ctx, inputs, output) -> None:
    x, kernel, _, ctx.dilation = inputs
    ctx.save_for_backward(x, kernel)


def _backward(ctx, dz):
    x, kernel = ctx.saved_tensors
    want_x, want_kernel, want_bias, _ = ctx.needs_input_grad
    dx = dkernel = None
    if want_x or want_kernel:
        dx, dkernel = call(_narrow_convolution_backward, dz, x, kernel, ctx.dilation, want_x, want_kernel)
    return dx if want_x else None, dkernel if want_kernel else None, dz.sum((0, 2, 3)) if want_bias else None, None


def _save_moments(ctx, inputs, output) -> None:
    x, kernel, _, ctx.dilation = inputs
    z, mean, _ = output
    ctx.save_for_backward(x, kernel, z, mean)


def _moments_backward(ctx, dz, dmean, dvariance):
    """As without the moments, for dz + dmean / M + 2 dvariance / M (z - mean), M pixels a channel."""
    x, kernel, z, mean = ctx.saved_tensors
    pixels = z.numel() // z.shape[1]
    weights, centres = torch.stack([torch.ones_like(mean), 2 / pixels * dvariance]), torch.stack([0 * mean, mean])
    dz = weighted_sum(weights, [dz, z], dmean / pixels, centres)
    want_x, want_kernel, want_bias, _ = ctx.needs_input_grad
    dx, dkernel = call(_narrow_convolution_backward, dz, x, kernel, ctx.dilation, want_x, want_kernel)
    return dx if want_x else None, dkernel if want_kernel else None, dz.sum((0, 2, 3)) if want_bias else None, None


_narrow_convolution.register_autograd(_backward, setup_context=_save)
_narrow_convolution_moments.register_autograd(_moments_backward, setup_context=_save_moments)
for _device in ("cpu", "cuda"):
    _narrow_convolution.register_autocast(_device, torch.float32)
    _narrow_convolution_moments.register_autocast(_device, torch.float32)


def _flops(x: Sequence[int], kernel: Sequence[int]) -> int:
    outputs, channels, size, _ = kernel
    return 2 * x[0] * x[2] * x[3] * outputs * channels * size**2


@register_flop_formula(torch.ops.srnas_fast.narrow_convolution)
def _(x, kernel, bias, dilation, *args, **kwargs) -> int:
    return _flops(x, kernel)


@register_flop_formula(torch.ops.srnas_fast.narrow_convolution_moments)
def _(x, kernel, bias, dilation, *args, **kwargs) -> int:
    return _flops(x, kernel) + 4 * x[0] * x[2] * x[3] * kernel[0]


@register_flop_formula(torch.ops.srnas_fast.narrow_convolution_backward)
def _(dz, x, kernel, dilation, want_x, want_kernel, *args, **kwargs) -> int:
    return (want_x + want_kernel) * _flops(x, kernel)
