"""Networks that enlarge, in tiles that blend: where tiles are exact, and how near they come where they cannot be."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from srnas_fast.errors import InputError
from srnas_fast.train.tiles import _shares, _spans, upscale_in_tiles


def smooth(height, width, seed=0, images=1, dtype=torch.float32):
    """Images of coarse and fine structure on the [0, 255] scale."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(images, 3, 5, 6, generator=generator, dtype=dtype)
    fine = torch.rand(images, 3, height, width, generator=generator, dtype=dtype)
    return 200 * F.interpolate(coarse, (height, width), mode="bicubic") + 40 * fine


class Upscaler(nn.Module):
    """Three convolutions: an output pixel depends on no more than 1 + 2 + 1 input pixels to each side."""

    reach = 4

    def __init__(self, scale=2):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(6, 6, 5, padding=2),
            nn.ReLU(),
            nn.Conv2d(6, 4 * scale**2, 3, padding=1),
            nn.PixelShuffle(scale),
        )

    def forward(self, x):
        return self.layers(x)


class Attention(nn.Module):
    """An upscaler with the attention of DLSR: pooling by steps of 2 and 3, enlarged to the image's size again."""

    def __init__(self, scale=2, channels=8):
        super().__init__()
        torch.manual_seed(1)
        self.head = nn.Conv2d(3, channels, 3, padding=1)
        self.steps = nn.Conv2d(channels, channels, 3, stride=2)
        self.inside = nn.Conv2d(channels, channels, 3, padding=1)
        self.tail = nn.Conv2d(channels, 3 * scale**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(scale)
        with torch.no_grad():
            self.inside.weight.mul_(4)

    def pooled(self, x):
        return F.max_pool2d(self.steps(self.head(x) / 64), 7, 3)

    @staticmethod
    def lines(length, pooled, start, whole):
        """(length, pooled) weights of the bilinear enlargement of a whole side, for the part that begins at start."""
        all_pooled = ((whole - 3) // 2 + 1 - 7) // 3 + 1
        at = (torch.arange(start, start + length, dtype=torch.float64) + 0.5) * all_pooled / whole - 0.5
        at = (at.clamp(0, all_pooled - 1) - start / 6).clamp(0, pooled - 1)
        return (1 - (at[:, None] - torch.arange(pooled)).abs()).clamp_min(0)

    def forward(self, x, place=None):
        mask = self.inside(self.pooled(x))
        if place is None:
            mask = F.interpolate(mask, x.shape[-2:], mode="bilinear", align_corners=False)
        else:
            rows, columns = (self.lines(x.shape[i], mask.shape[i], place[i - 2], place[i]).to(mask) for i in (2, 3))
            mask = rows @ mask @ columns.T
        return self.shuffle(self.tail(self.head(x) * mask.sigmoid()))


@pytest.fixture(scope="module")
def upscaler():
    return Upscaler().eval()


@pytest.fixture(scope="module")
def attention():
    return Attention().eval()


@pytest.mark.parametrize("overlap", [0, 1, 2, 7, 12, 30])
@pytest.mark.parametrize("grid", [1, 2, 6])
@pytest.mark.parametrize("length", [1, 36, 37, 41, 42, 43, 97, 129, 500])
def test_spans_and_shares(length, overlap, grid):
    tile = 36
    spans = _spans(length, tile, overlap, grid)
    assert spans[0][0] == 0 and spans[-1][1] == length
    assert all(start % grid == 0 and 0 < stop - start <= tile for start, stop in spans)
    assert all(one[1] - two[0] >= overlap and one[0] < two[0] for one, two in zip(spans, spans[1:], strict=False))
    total, margin = torch.zeros(length, dtype=torch.float64), overlap // 3
    for (start, stop), share in zip(spans, _shares(spans, overlap), strict=True):
        assert share.shape == (stop - start,) and share.min() >= 0 and share.max() <= 1
        total[start:stop] += share
        if start > 0:
            assert share[:margin].sum() == 0
        if stop < length:
            assert share[len(share) - margin :].sum() == 0
    assert torch.allclose(total, torch.ones_like(total), rtol=0, atol=1e-12)


def test_the_ramp_is_linear_in_the_middle_third():
    first, second = _shares([(0, 20), (11, 31)], overlap=9)
    expected = torch.tensor([0, 0, 0, 1 / 6, 3 / 6, 5 / 6, 1, 1, 1], dtype=torch.float64)
    assert torch.allclose(second[:9], expected) and torch.allclose(first[-9:], 1 - expected)


@pytest.mark.parametrize("size", [(37, 53), (64, 64), (90, 41), (5, 100), (70, 1)])
@pytest.mark.parametrize("tile, overlap", [(24, 12), (41, 12), (29, 14)])
@pytest.mark.parametrize("grid", [1, 6])
def test_exact_where_a_third_of_the_overlap_covers_the_reach(upscaler, size, tile, overlap, grid):
    x = smooth(*size)
    with torch.no_grad():
        whole = upscaler(x)
    tiled = upscale_in_tiles(upscaler, x, 2, tile, overlap, grid)
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-4)


@pytest.mark.parametrize("scale", [1, 3, 4])
def test_other_scales_several_images_and_layouts(scale):
    net, x = Upscaler(scale).eval().double(), smooth(40, 62, images=3, dtype=torch.float64)
    for image in (x, x[..., ::2], x.to(memory_format=torch.channels_last)):
        with torch.no_grad():
            whole = net(image)
        assert whole.shape == (3, 4, scale * image.shape[2], scale * image.shape[3])
        torch.testing.assert_close(upscale_in_tiles(net, image, scale, 25, 12), whole, rtol=0, atol=1e-10)


def test_exact_away_from_overlaps_that_cover_the_reach(upscaler):
    """An overlap of 5 pixels covers the reach of 4, a third of it does not: wrong in overlaps, right elsewhere."""
    x, tile, overlap = smooth(61, 80), 30, 5
    with torch.no_grad():
        difference = (upscale_in_tiles(upscaler, x, 2, tile, overlap) - upscaler(x)).abs().amax((0, 1))
    shared = torch.zeros(61, 80, dtype=torch.bool)
    for dim, length in enumerate(shared.shape):
        spans = _spans(length, tile, overlap, 1)
        for (_, stop), (start, _) in zip(spans, spans[1:], strict=False):
            shared.narrow(dim, start, stop - start)[:] = True
    shared = shared.repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert not shared.all()
    assert difference[~shared].max() < 1e-4 < 1e-2 < difference[shared].max()


def test_blended_weights_sum_to_one():
    """A network that gives the same number everywhere gives it in tiles too."""

    class One(nn.Module):
        def forward(self, x):
            return torch.ones(1, 1, 3 * x.shape[2], 3 * x.shape[3], dtype=x.dtype)

    for dtype, atol in [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)]:
        result = upscale_in_tiles(One(), torch.zeros(1, 3, 67, 45, dtype=dtype), 3, 20, 13, 2)
        assert result.dtype == dtype and result.shape == (1, 1, 201, 135)
        assert (result.float() - 1).abs().max() <= atol


@pytest.mark.parametrize("tile", [0, 50, 1000])
@pytest.mark.parametrize("size", [(40, 50), (1, 1)])
def test_one_call_where_no_tiles_are_needed(tile, size):
    calls = []

    class Net(nn.Module):
        def forward(self, x):
            calls.append(tuple(x.shape))
            return F.interpolate(x, scale_factor=2)

    upscale_in_tiles(Net(), smooth(*size), 2, tile, 12, 6, placed=True)
    assert calls == [(1, 3, *size)]


def test_no_part_is_larger_than_a_tile_and_all_are_told_their_place():
    parts, x = [], smooth(100, 131)

    def network(part, place):
        parts.append((part, place))
        return F.interpolate(part, scale_factor=2)

    result = upscale_in_tiles(network, x, 2, 48, 12, 6, placed=True)
    torch.testing.assert_close(result, F.interpolate(x, scale_factor=2))
    assert len(parts) == 3 * 4  # no more tiles than it takes
    for part, (top, left, height, width) in parts:
        assert max(part.shape[-2:]) <= 48 and top % 6 == left % 6 == 0 and (height, width) == (100, 131)
        assert torch.equal(part, x[..., top : top + part.shape[2], left : left + part.shape[3]])


@pytest.mark.parametrize("origin, equal", [(12, True), (18, True), (3, False), (8, False), (15, False)])
def test_attention_pools_the_same_windows_on_a_grid_of_6_only(attention, origin, equal):
    x = smooth(120, 90).double()
    net = Attention().double()
    whole, part = net.pooled(x), net.pooled(x[..., origin : origin + 60, :])
    at, inside = round(origin / 6), slice(1, part.shape[2])  # the head's padding touches the first window
    same = (part[:, :, inside] - whole[:, :, at : at + part.shape[2]][:, :, inside]).abs().max() < 1e-9
    assert same == equal


def test_placed_attention_of_the_whole_image_is_plain_attention(attention):
    for size in [(15, 40), (63, 58)]:
        x = smooth(*size)
        torch.testing.assert_close(attention(x, (0, 0, *size)), attention(x), rtol=1e-4, atol=1e-4)


def test_tiles_of_attention(attention):
    """Told nothing, attention enlarges its map as if each tile were an image; told its place, only edges differ."""
    x = smooth(150, 207, seed=3)
    with torch.no_grad():
        whole = attention(x)

    def difference(tile=78, overlap=36, **how):
        return (upscale_in_tiles(attention, x, 2, tile, overlap, **how) - whole).abs()

    level = whole.std().item()
    aligned, shifted, placed = difference(grid=6), difference(grid=1), difference(grid=6, placed=True)
    assert 1e-3 * level < aligned.mean() < shifted.mean() < 0.05 * level
    assert aligned.max() < 0.5 * level
    assert placed.mean() < 0.15 * aligned.mean() and placed.max() < aligned.max()
    # A pixel depends on 26 to each side: one line of the map (6) and its shift (4.5), the convolution of the map (6),
    # a window (7) and two convolutions. A third of 78 covers that, and tiles are exact.
    assert difference(114, 78, grid=6, placed=True).max() < 1e-5 * level < difference(114, 78, grid=6).max()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"scale": 0}, "scale is 0"),
        ({"grid": 0}, "grid 0"),
        ({"tile": -1}, "tile is -1"),
        ({"overlap": -1}, "overlap -1"),
        ({"overlap": 20}, "tile of 21 pixels or more"),
        ({"overlap": 15, "grid": 6}, "tile of 21 pixels or more"),
        ({"scale": 3}, "scale is 3, but the network makes"),
    ],
)
def test_bad_settings(upscaler, settings, message):
    with pytest.raises(InputError, match=message):
        upscale_in_tiles(upscaler, smooth(40, 40), **({"scale": 2, "tile": 20, "overlap": 5} | settings))
