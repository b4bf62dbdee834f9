import pytest
import torch

from srnas_fast.primitives.images import address, addresses, empty_output
from srnas_fast.primitives.multi_depthwise import depthwise_sizes, multi_depthwise_reference

NCHW, CHANNELS_LAST = torch.contiguous_format, torch.channels_last
# One pixel; less and more than a tile, of one group of channels and of two, of which one is not full.
SHAPES = [(1, 1, 1, 1), (2, 3, 9, 7), (1, 20, 5, 19)]
# (sizes, dilations): taps that all lie outside of the image but for one; a halo that does not fit with all channels.
CANDIDATES = [([1], [1]), ([3, 5, 7], [1, 2, 1]), ([3, 9], [40, 1])]


def inputs(shape, sizes, stride, form=NCHW, sliced=False):
    """(x, kernels, dys); `sliced`: x and the dys are slices of the channels and the columns of wider tensors."""
    torch.manual_seed(0)
    n, channels, height, width = shape

    def images(height, width):
        if not sliced:
            return torch.randn(n, channels, height, width).contiguous(memory_format=form)
        wide = torch.randn(n, channels + 2, height, 2 * width).contiguous(memory_format=form)
        return wide[:, 1 : 1 + channels, :, ::2]

    kernels = [torch.randn(channels, 1, size, size) for size in sizes]
    return images(height, width), kernels, [images(-(-height // stride), -(-width // stride)) for _ in sizes]


def run(cuda, x, kernels, dys, dilations, stride, want_x=True, want_kernels=True):
    """(outputs, dx, dkernels) by the kernels, the gradients None and [] where not wanted."""
    plan = depthwise_sizes(kernels), dilations, stride
    given = x.data_ptr(), x.shape, x.stride()
    outputs = [torch.full_like(empty_output(x, x.shape[1], stride, x.dtype), torch.nan) for _ in kernels]
    places = addresses(outputs), outputs[0].stride()
    cuda.multi_depthwise(*given, addresses(kernels), *plan, *places)
    dx = torch.full_like(x, torch.nan) if want_x else None
    dkernels = [torch.full_like(kernel, torch.nan) for kernel in kernels] if want_kernels else []
    cuda.multi_depthwise_backward(
        *given,
        addresses(dys),
        [dy.stride() for dy in dys],
        addresses(kernels),
        *plan,
        address(dx),
        dx.stride() if want_x else [0] * 4,
        addresses(dkernels),
    )
    return outputs, dx, dkernels


def reference(x, kernels, dys, dilations, stride):
    """The same in float64."""
    leaves = [tensor.double().requires_grad_() for tensor in (x, *kernels)]
    outputs = multi_depthwise_reference(leaves[0], leaves[1:], dilations, stride)
    dx, *dkernels = torch.autograd.grad(outputs, leaves, [dy.double() for dy in dys])
    return outputs, dx, dkernels


def flat(results):
    outputs, dx, dkernels = results
    return [*outputs, dx, *dkernels]


@pytest.mark.parametrize("sizes, dilations", CANDIDATES)
@pytest.mark.parametrize("form, sliced", [(NCHW, False), (CHANNELS_LAST, False), (NCHW, True)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_against_the_reference(cuda, assert_same, shape, stride, form, sliced, sizes, dilations):
    tensors = inputs(shape, sizes, stride, form, sliced)
    assert_same(flat(run(cuda, *tensors, dilations, stride)), flat(reference(*tensors, dilations, stride)))


# A large stride; a halo too large for shared memory; more candidates than a launch takes; more taps than a block takes.
@pytest.mark.parametrize(
    "shape, sizes, dilations, stride",
    [
        ((1, 2, 17, 33), [3, 5], [1, 2], 5),
        ((1, 2, 30, 33), [5, 1], [30, 1], 1),
        ((1, 2, 30, 33), [3], [20], 3),
        ((1, 1, 3, 4), [3, 1] * 5, [1, 2] * 5, 1),
        ((1, 2, 4, 3), [33], [1], 1),
    ],
)
def test_extremes(cuda, assert_same, shape, sizes, dilations, stride):
    tensors = inputs(shape, sizes, stride)
    assert_same(flat(run(cuda, *tensors, dilations, stride)), flat(reference(*tensors, dilations, stride)))


@pytest.mark.parametrize("want_x, want_kernels", [(True, False), (False, True)])
def test_what_is_not_wanted(cuda, assert_same, want_x, want_kernels):
    tensors = inputs((2, 3, 5, 4), [3, 5], 1)
    _, dx, dkernels = run(cuda, *tensors, [1, 1], 1, want_x, want_kernels)
    _, exact_dx, exact = reference(*tensors, [1, 1], 1)
    assert_same([dx] if want_x else dkernels, [exact_dx] if want_x else exact)
    assert (dx is None) == (not want_x) and bool(dkernels) == want_kernels


def test_the_same_bits_twice(cuda):
    tensors = inputs((3, 3, 20, 33), [3, 5], 1)
    first, second = (flat(run(cuda, *tensors, [1, 2], 1)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("shape", [(0, 3, 5, 4), (2, 0, 5, 4)])
def test_no_images_and_no_channels(cuda, shape):
    _, dx, dkernels = run(cuda, *inputs(shape, [3, 5], 1), [1, 1], 1)
    assert not dx.numel() and all(dkernel.count_nonzero() == 0 for dkernel in dkernels)
