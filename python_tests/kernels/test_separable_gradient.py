import pytest
import torch

from srnas_fast.primitives.separable_gradient import separable_gradient_reference

KERNELS = [(3, 2), (1, 1)]  # (size, dilation) of each candidate


class Problem:
    """Random arguments of one call, in float64 on the CPU, as the reference takes them."""

    def __init__(self, shape, outputs, stride=1, kernels=KERNELS):
        generator = torch.Generator().manual_seed(0)

        def random(*size):
            return torch.randn(*size, generator=generator).double()

        n, c, h, w = shape
        self.x = random(n, c, h, w) + 1
        self.dy = random(n, outputs, (h - 1) // stride + 1, (w - 1) // stride + 1)
        self.depthwise = [random(c, 1, k, k) for k, _ in kernels]
        self.left = [random(outputs, c).t() for _ in kernels]
        self.right = [random(c, c) for _ in kernels]
        self.offsets, self.centres = random(len(kernels), c), random(len(kernels), c)
        self.dilations, self.stride = [d for _, d in kernels], stride
        self.before = random(n, c, h, w)

    def want(self, accumulate=False):
        """[dx, dysum, ddepthwise..., products...] of the reference."""
        wanted = (True, True, self.dy is not None)
        results = separable_gradient_reference(self.x, self.dy, *self.matrices(), self.dilations, self.stride, *wanted)
        return [results[0] + self.before if accumulate else results[0], *results[1:]]

    def matrices(self):
        return self.depthwise, self.left, self.right, self.offsets, self.centres

    def got(
        self,
        device,
        accumulate=False,
        dtype=torch.float32,
        layout=torch.Tensor.contiguous,
        want_x=True,
        want_sum=True,
        want_depthwise=True,
        want_products=True,
    ):
        """[dx, dysum, ddepthwise..., products...] of the kernels, None where not wanted."""
        from srnas_fast.kernels.separable_gradient import separable_gradient

        def put(value):
            if isinstance(value, list):
                return [put(item) for item in value]
            return None if value is None else value.to(device, torch.float32)

        def image(value):
            return None if value is None else layout(value.to(device, dtype))

        def empty(*shape):
            return torch.full(shape, torch.nan, device=device)

        outputs, channels = 0 if self.dy is None else self.dy.shape[1], self.x.shape[1]
        # the kernels must not read what they only write
        dx = image(self.before if accumulate else torch.full_like(self.before, torch.nan)) if want_x else None
        dysum = empty(outputs) if want_sum and self.dy is not None else None
        kernels = [empty(*w.shape) for w in self.depthwise] if want_depthwise else None
        products = [empty(outputs, channels) for _ in self.depthwise] if want_products and outputs else None
        arguments = (image(self.x), image(self.dy), *map(put, self.matrices()), self.dilations, self.stride)
        separable_gradient(dx, dysum, kernels, products, accumulate, *arguments)
        missing = [None] * len(self.depthwise)
        return [dx, dysum, *(kernels or missing), *(products or missing)]


def assert_near(got, want, tolerance=1e-5):
    for a, b in zip(got, want, strict=False):
        if a is not None:
            assert a.shape == b.shape
            assert (a.double().cpu() - b).abs().max() <= tolerance * b.abs().max()


def every_second(z):
    """The same values with gaps between columns."""
    wide = z.new_empty(*z.shape[:3], 2 * z.shape[3])
    wide[..., ::2] = z
    return wide[..., ::2]


def some_channels(z):
    """The same values between channels that belong to nobody."""
    more = z.new_empty(z.shape[0], z.shape[1] + 2, *z.shape[2:])
    more[:, 1:-1] = z
    return more[:, 1:-1]


LAYOUTS = {
    "NCHW": torch.Tensor.contiguous,
    "channels_last": lambda z: z.contiguous(memory_format=torch.channels_last),
    "columns": every_second,
    "channels": some_channels,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("accumulate", [False, True])
def test_layouts(device, layout, stride, accumulate):
    problem = Problem((2, 3, 5, 7), 5, stride)
    assert_near(problem.got(device, accumulate, layout=LAYOUTS[layout]), problem.want(accumulate))


@pytest.mark.parametrize(
    "shape, outputs, stride",
    [
        ((1, 1, 1, 1), 1, 1),
        ((1, 20, 1, 1), 17, 2),
        ((2, 1, 6, 5), 17, 1),
        ((1, 20, 5, 7), 1, 2),
        ((1, 3, 1, 40), 3, 1),
        ((1, 3, 7, 7), 20, 3),
    ],
)
def test_sizes(device, shape, outputs, stride):
    problem = Problem(shape, outputs, stride)
    assert_near(problem.got(device), problem.want())


@pytest.mark.parametrize("stride", [1, 2])
def test_many_kernels_some_larger_than_the_image(device, stride):
    problem = Problem((1, 3, 4, 5), 3, stride, [(3, 1), (7, 1), (1, 1), (5, 2), (3, 8)])
    assert_near(problem.got(device), problem.want())


def test_more_channels_than_one_tile(device):
    problem = Problem((1, 70, 4, 5), 67, kernels=[(3, 1)])
    assert_near(problem.got(device), problem.want())


def test_more_blocks_of_pixels_than_programs(device, monkeypatch):
    from srnas_fast.kernels import separable_gradient as module

    monkeypatch.setattr(module, "PROGRAMS", 2)
    problem = Problem((3, 5, 6, 7), 4, kernels=[(3, 1)])
    assert_near(problem.got(device, True), problem.want(True))


@pytest.mark.parametrize("off", ["want_x", "want_sum", "want_depthwise", "want_products"])
@pytest.mark.parametrize("only", [False, True])
def test_wanted_results(device, off, only):
    names = ["want_x", "want_sum", "want_depthwise", "want_products"]
    wanted = {name: (name == off) == only for name in names}
    problem = Problem((1, 3, 5, 6), 4)
    got = problem.got(device, **wanted)
    count = len(KERNELS)
    groups = [got[:1], got[1:2], got[2 : 2 + count], got[2 + count :]]
    assert [group[0] is not None for group in groups] == [wanted[name] for name in names]
    assert_near(got, problem.want())


@pytest.mark.parametrize("missing", ["right", "offsets", "centres", "all", "dy"])
def test_missing_parts(device, missing):
    problem = Problem((2, 3, 5, 4), 4)
    if missing in ("right", "all"):
        problem.right = []
    if missing in ("offsets", "all"):
        problem.offsets = None
    if missing in ("centres", "all"):
        problem.centres = None
    if missing == "dy":
        problem.dy, problem.left = None, []
    assert_near(problem.got(device), problem.want())


def test_dy_without_memory_of_its_own(device):
    problem = Problem((2, 3, 5, 4), 4)
    problem.dy = torch.ones(1, dtype=torch.float64).expand_as(problem.dy)
    assert_near(problem.got(device, layout=lambda z: z), problem.want())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("accumulate", [False, True])
def test_narrow_images_are_rounded_once(device, dtype, accumulate):
    problem = Problem((2, 3, 5, 6), 4)
    for name in ("x", "dy", "before"):
        setattr(problem, name, getattr(problem, name).to(dtype).double())
    dx, *sums = problem.got(device, accumulate, dtype)
    want, *want_sums = problem.want(accumulate)
    assert dx.dtype == dtype
    assert_near(sums, want_sums)
    # the interpreter's store of bfloat16 is one last place off
    assert_near([dx], [want], 2 * torch.finfo(dtype).eps)


def test_repeats_to_the_bit(device):
    problem = Problem((2, 3, 7, 5), 4)
    for a, b in zip(problem.got(device), problem.got(device), strict=True):
        assert torch.equal(a, b)


def test_no_images(device):
    problem = Problem((0, 3, 5, 4), 4)
    dx, *sums = problem.got(device)
    assert not dx.numel() and not any(z.any() for z in sums)
