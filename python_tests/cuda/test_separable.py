import pytest
import torch

from srnas_fast.primitives.images import address, addresses, empty_output
from srnas_fast.primitives.multi_depthwise import depthwise_sizes
from srnas_fast.primitives.separable_gradient import separable_gradient_reference
from srnas_fast.primitives.separable_moments import separable_moments_reference
from srnas_fast.primitives.separable_sum import separable_sum_reference

NCHW, CHANNELS_LAST = torch.contiguous_format, torch.channels_last
SIZES, DILATIONS = [3, 5, 1], [2, 1, 1]
# (N, C, H, W), O: one pixel; less and more than a tile; two groups of channels, one not full, and of outputs.
SHAPES = [((1, 1, 1, 1), 1), ((2, 3, 9, 7), 20), ((1, 20, 5, 17), 3), ((1, 3, 3, 4), 70)]
# (shape, O, sizes, dilations, stride): a large stride; a halo too large for shared memory; more candidates than a
# launch takes; more channels than a block of products.
EXTREMES = [
    ((1, 2, 17, 33), 3, [3, 5], [1, 2], 5),
    ((1, 2, 36, 33), 3, [5, 1], [36, 1], 1),
    ((1, 2, 3, 4), 3, [3, 1] * 5, [1, 2] * 5, 1),
    ((1, 70, 2, 3), 67, [3], [1], 1),
]
LAYOUTS = [(NCHW, False), (CHANNELS_LAST, False), (NCHW, True)]


class Case:
    """Inputs of all three operations; `sliced`: x and dy are slices of the channels and columns of wider tensors."""

    def __init__(self, shape, outputs, sizes=SIZES, dilations=DILATIONS, stride=1, form=NCHW, sliced=False):
        torch.manual_seed(0)
        n, channels, height, width = shape
        count = len(sizes)

        def images(channels, height, width):
            if not sliced:
                return torch.randn(n, channels, height, width).contiguous(memory_format=form)
            wide = torch.randn(n, channels + 2, height, 2 * width).contiguous(memory_format=form)
            return wide[:, 1 : 1 + channels, :, ::2]

        self.dilations, self.stride, self.outputs = dilations, stride, outputs
        self.x = images(channels, height, width)
        self.dy = images(outputs, -(-height // stride), -(-width // stride))
        self.depthwise = [torch.randn(channels, 1, size, size) for size in sizes]
        self.pointwise = [torch.randn(outputs, channels) for _ in sizes]
        self.left = [torch.randn(channels, outputs) for _ in sizes]
        self.right = [torch.randn(channels, channels) for _ in sizes]
        self.shift, self.centres, self.offsets = torch.randn(outputs), *torch.randn(2, count, channels)

    def given(self):
        return self.x.data_ptr(), self.x.shape, self.x.stride()

    def plan(self):
        return depthwise_sizes(self.depthwise), self.dilations, self.stride


def double(values):
    if isinstance(values, (list, tuple)):
        return [double(value) for value in values]
    return values.double() if isinstance(values, torch.Tensor) else values


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# ---- separable_sum


def add(cuda, case, shift, centres, y=None):
    """The sum, or y with it added."""
    accumulate = y is not None
    y = y.clone() if accumulate else torch.full_like(empty_output(case.x, case.outputs, case.stride, torch.float32), 7)
    cuda.separable_sum(
        *case.given(),
        addresses(case.depthwise),
        *case.plan(),
        addresses(case.pointwise),
        address(shift),
        address(centres),
        y.data_ptr(),
        case.outputs,
        y.stride(),
        accumulate,
    )
    return y


def sum_reference(case, shift, centres):
    given = double([case.x, case.depthwise, case.pointwise, shift, centres])
    return separable_sum_reference(*given, case.dilations, case.stride)


@pytest.mark.parametrize("form, sliced", LAYOUTS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape, outputs", SHAPES)
def test_sum(cuda, assert_same, shape, outputs, stride, form, sliced):
    case = Case(shape, outputs, stride=stride, form=form, sliced=sliced)
    exact = sum_reference(case, case.shift, case.centres)
    y = add(cuda, case, case.shift, case.centres)
    assert_same([y], [exact])
    assert_same([add(cuda, case, case.shift, case.centres, case.dy)], [exact + case.dy])
    assert same([y], [add(cuda, case, case.shift, case.centres)])


@pytest.mark.parametrize("extreme", EXTREMES)
def test_sum_of_extremes(cuda, assert_same, extreme):
    case = Case(*extreme)
    for shift, centres in ((None, case.centres), (case.shift, None)):
        assert_same([add(cuda, case, shift, centres)], [sum_reference(case, shift, centres)])


# ---- separable_moments


def moments(cuda, case):
    count, channels = len(case.depthwise), case.x.shape[1]
    means, covariances = torch.full((count, channels), torch.nan), torch.full((count, channels, channels), torch.nan)
    results = means.data_ptr(), covariances.data_ptr()
    cuda.separable_moments(*case.given(), addresses(case.depthwise), *case.plan(), *results)
    return means, covariances


def moments_reference(case):
    return separable_moments_reference(*double([case.x, case.depthwise]), case.dilations, case.stride)


@pytest.mark.parametrize("form, sliced", LAYOUTS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape, outputs", SHAPES[:3])
def test_moments(cuda, assert_same, shape, outputs, stride, form, sliced):
    case = Case(shape, outputs, stride=stride, form=form, sliced=sliced)
    ours = moments(cuda, case)
    assert_same(ours, moments_reference(case))
    assert same(ours, moments(cuda, case))
    assert torch.equal(ours[1], ours[1].transpose(1, 2))


@pytest.mark.parametrize("extreme", EXTREMES)
def test_moments_of_extremes(cuda, assert_same, extreme):
    case = Case(*extreme)
    assert_same(moments(cuda, case), moments_reference(case))


def test_moments_far_from_zero(cuda, assert_same):
    case = Case((2, 2, 12, 11), 1, [1], [1])
    case.x += 300.0
    case.depthwise[0].fill_(1.0)
    assert_same(moments(cuda, case), moments_reference(case))


# ---- separable_gradient


def gradient(cuda, case, dy, left, right, offsets, centres, wanted=(True, True, True), dx=None):
    """[dx, dysum, ddepthwise, products] as one list, without what is not wanted; dx is added to if it is given."""
    want_x, want_depthwise, want_products = wanted
    accumulate, channels = dx is not None, case.x.shape[1]
    dx = dx.clone() if accumulate else torch.full_like(case.x, torch.nan) if want_x else None
    outputs = 0 if dy is None else case.outputs
    dysum = None if dy is None else torch.full((outputs,), torch.nan)
    ddepthwise = [torch.full_like(kernel, torch.nan) for kernel in case.depthwise] if want_depthwise else []
    products = [torch.full((outputs, channels), torch.nan) for _ in case.depthwise] if want_products else []
    cuda.separable_gradient(
        *case.given(),
        address(dy),
        outputs,
        [0] * 4 if dy is None else dy.stride(),
        addresses(case.depthwise),
        *case.plan(),
        addresses(left),
        addresses(right),
        address(offsets),
        address(centres),
        address(dx),
        [0] * 4 if dx is None else dx.stride(),
        accumulate,
        address(dysum),
        addresses(ddepthwise),
        addresses(products),
    )
    return [result for result in (dx, dysum, *ddepthwise, *products) if result is not None]


def gradient_reference(case, dy, left, right, offsets, centres, wanted=(True, True, True)):
    given = double([case.x, dy, case.depthwise, left or None, right or None, offsets, centres])
    dx, dysum, *rest = separable_gradient_reference(*given, case.dilations, case.stride, *wanted)
    return [*([dx] if wanted[0] else []), *([] if dy is None else [dysum]), *(r for r in rest if r.numel())]


@pytest.mark.parametrize("form, sliced", LAYOUTS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape, outputs", SHAPES[:3])
def test_gradient(cuda, assert_same, shape, outputs, stride, form, sliced):
    case = Case(shape, outputs, stride=stride, form=form, sliced=sliced)
    given = case.dy, case.left, case.right, case.offsets, case.centres
    ours = gradient(cuda, case, *given)
    assert_same(ours, gradient_reference(case, *given))
    assert same(ours, gradient(cuda, case, *given))


@pytest.mark.parametrize("extreme", EXTREMES)
def test_gradient_of_extremes(cuda, assert_same, extreme):
    case = Case(*extreme)
    given = case.dy, case.left, case.right, None, case.centres
    assert_same(gradient(cuda, case, *given), gradient_reference(case, *given))


@pytest.mark.parametrize("stride", [1, 2])
def test_gradient_of_less(cuda, assert_same, stride):
    case = Case((2, 3, 5, 6), 4, stride=stride)
    without_dy = True, True, False
    for given, wanted in [
        ((case.dy, case.left, [], None, None), (True, True, True)),
        ((None, [], case.right, case.offsets, case.centres), without_dy),
        ((None, [], [], case.offsets, None), without_dy),
        ((None, [], [], None, None), without_dy),
        ((case.dy, case.left, case.right, case.offsets, None), (True, False, False)),
        ((case.dy, case.left, [], None, case.centres), (False, True, False)),
        ((case.dy, case.left, [], None, case.centres), (False, False, True)),
    ]:
        assert_same(gradient(cuda, case, *given, wanted), gradient_reference(case, *given, wanted))


@pytest.mark.parametrize("stride", [1, 2])
def test_gradient_that_is_added(cuda, assert_same, stride):
    case = Case((2, 3, 5, 6), 4, stride=stride)
    given, before = (case.dy, case.left, case.right, case.offsets, case.centres), torch.randn(case.x.shape)
    dx, *exact = gradient_reference(case, *given)
    assert_same(gradient(cuda, case, *given, dx=before), [dx + before, *exact])


def test_more_tiles_than_blocks(cuda, assert_same):
    case = Case((515, 1, 1, 1), 1, [1], [1])
    given, wanted = (case.dy, case.left, [], None, None), (False, True, True)
    assert_same(gradient(cuda, case, *given, wanted), gradient_reference(case, *given, wanted))


def test_no_images(cuda):
    case = Case((0, 3, 5, 6), 4)
    assert not add(cuda, case, case.shift, case.centres).numel()
    dx, *sums = gradient(cuda, case, case.dy, case.left, case.right, case.offsets, case.centres)
    assert not dx.numel() and all(found.count_nonzero() == 0 for found in sums)
