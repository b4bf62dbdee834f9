"""The HiNAS super-resolution spaces against the numbers of their published modules."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from srnas_fast.data import SuperResolutionData
from srnas_fast.errors import InputError
from srnas_fast.losses import L1SSIMLoss
from srnas_fast.metrics import LiveMemory, count_parameters, multi_adds
from srnas_fast.mixed import MixedOp, PlainMixedOp
from srnas_fast.spaces import find_space
from srnas_fast.spaces.hinas.genotype import Genotype, random_genotype
from srnas_fast.spaces.hinas.network import DerivedNetwork, SuperResolutionNetworkConfig
from srnas_fast.spaces.hinas.operations import SpatialPyramid
from srnas_fast.spaces.hinas.supernet import Supernet, SuperResolutionSupernetConfig
from srnas_fast.spaces.hinas.task import HiNASSuperResolution
from srnas_fast.train.super_resolution import upscale_pixels

SMALL = {"filters": 4, "nodes": 2}
CELLS = {
    "a": [("con_c_3x3", 0), ("sep_c_3x3", 1)] * 3,
    "b": [
        *[("sep_c_5x5", 0), ("dil_c_3x3", 1), ("skip_connect", 2)],
        *[("sep_c_3x3", 0), ("dil_c_5x5", 3), ("con_c_3x3", 1)],
    ],
}
PIXELS = 64 * 64
# x4: cell, path, pyramid, where the skip comes from, parameters, Multi-Adds at 64x64 and for 720p.
DERIVED = [
    ("a", [0, 0], True, None, 283_152, 1_144_258_560, 16_091_136_000),
    ("a", [0, 0], False, None, 196_576, 795_017_216, 11_179_929_600),
    ("a", [0, 1], True, 0, 308_296, 1_132_691_456, 15_928_473_600),
    ("a", [0, 1], False, 0, 211_712, 743_047_168, 10_449_100_800),
    ("a", [1, 0], True, None, 295_728, 1_195_048_960, 16_805_376_000),
    ("a", [1, 0], False, None, 209_152, 845_807_616, 11_894_169_600),
    ("a", [1, 1], True, None, 321_064, 1_297_514_496, 18_246_297_600),
    ("a", [1, 1], False, None, 224_480, 907_870_208, 12_766_924_800),
    ("a", [1, 2], True, None, 350_624, 1_417_281_536, 19_930_521_600),
    ("a", [1, 2], False, None, 244_032, 987_234_304, 13_882_982_400),
    ("b", [0, 0], True, None, 290_640, 1_175_453_696, 16_529_817_600),
    ("b", [0, 0], False, None, 204_064, 826_212_352, 11_618_611_200),
    ("b", [0, 1], True, 0, 320_344, 1_182_695_424, 16_631_654_400),
    ("b", [0, 1], False, 0, 223_760, 793_051_136, 11_152_281_600),
    ("b", [1, 0], True, None, 307_776, 1_245_052_928, 17_508_556_800),
    ("b", [1, 0], False, None, 221_200, 895_811_584, 12_597_350_400),
    ("b", [1, 1], True, None, 337_672, 1_366_327_296, 19_213_977_600),
    ("b", [1, 1], False, None, 241_088, 976_683_008, 13_734_604_800),
    ("b", [1, 2], True, None, 373_584, 1_512_243_200, 21_265_920_000),
    ("b", [1, 2], False, None, 266_992, 1_082_195_968, 15_218_380_800),
]


def supernet(scale=4, mixed_op=MixedOp, **settings):
    return Supernet(SuperResolutionSupernetConfig(scale=scale, **settings), mixed_op)


def derived(cell="b", path=(0, 1), **settings):
    return DerivedNetwork(Genotype([CELLS[cell]] * 2, list(path)), SuperResolutionNetworkConfig(**settings)).eval()


@pytest.mark.parametrize(
    "scale, parameters, decoder, last, adds",
    [
        (2, 405_648, 64_416, 7_788, 1_660_010_496),
        (3, 415_383, 74_151, 17_523, 1_699_823_616),
        (4, 429_012, 87_780, 31_152, 1_755_561_984),
    ],
)
def test_the_supernet_has_the_published_counts(scale, parameters, decoder, last, adds):
    net = supernet(scale, PlainMixedOp)
    assert sum(p.numel() for p in net.network_parameters()) == parameters
    assert count_parameters(net) == parameters + 135
    assert count_parameters(net.pyramids) + count_parameters(net.head) == decoder
    assert count_parameters(net.head[-1]) == last
    assert multi_adds(net, torch.zeros(1, 3, 64, 64)) == adds


def test_the_parts_of_the_supernet():
    net = supernet()
    assert net.alpha.shape == (2, 9, 7) and net.beta.shape == (3, 3)
    assert sum(isinstance(module, MixedOp) for module in net.modules()) == 45
    assert [count_parameters(part) for part in (net.stem1, net.stem2, net.reduce1)] == [1_728, 13_824, 4_608]
    assert [count_parameters(net.upsamplers[width]) for width in ("1", "2")] == [96, 192]
    assert [count_parameters(r) for layer in net.routers for r in layer.values()] == [480, 480, 1_296]
    assert [[count_parameters(cell) for cell in layer] for layer in net.cells] == [
        [31_968, 68_256],
        [31_968, 68_256, 118_080],
    ]
    assert [count_parameters(pyramid) for pyramid in net.pyramids] == [2_616, 3_324, 4_032]
    assert count_parameters(net.head[0]) == 46_656


def test_only_the_dilated_branches_are_affine():
    net = supernet()
    affine = [name for name, module in net.named_modules() if getattr(module, "affine", False)]
    assert len(affine) == 6 and all(".dilated.0." in name for name in affine)
    biased = [name for name, module in net.named_modules() if getattr(module, "bias", None) is not None]
    assert set(biased) == {*affine, "head.3"}


def test_illegal_moves_start_at_minus_fifty():
    net = supernet(scale=2)
    assert net.beta.tolist() == [[-50, 1, 1], [-50, 1, 1], [1, 1, 1]]
    weights = net.architecture_weights()["beta"][1]
    torch.testing.assert_close(weights, torch.tensor([[0, 0.5, 0.5], [0, 0.5, 0.5], [1 / 3] * 3]))


def test_which_routers_and_upsamplers_feed_which_cells():
    net = supernet(**SMALL).eval()
    weights = torch.arange(1.0, 10).view(3, 3)
    net._weights = lambda look: (net.alpha.softmax(-1), weights, None)
    made, given = {}, {}
    for name, module in net.named_modules():
        if name.startswith(("routers", "upsamplers")) or name == "reduce1":
            module.register_forward_hook(lambda _, __, y, name=name: made.__setitem__(name, y))
        if name.startswith("cells") and name.count(".") == 2:
            module.register_forward_pre_hook(lambda _, inputs, name=name: given.__setitem__(name, inputs[:2]))
    net(torch.rand(1, 3, 9, 11))

    def routed(*parts):  # (layer, from width, to width, row, column)
        return sum(weights[row, column] * made[f"routers.{layer}.{h}.{g}"] for layer, h, g, row, column in parts)

    previous = {
        "cells.0.0": routed((0, 0, 0, 0, 1)),
        "cells.0.1": routed((0, 0, 1, 0, 2)),
        "cells.1.0": routed((1, 0, 0, 1, 1), (1, 1, 0, 2, 0)),
        "cells.1.1": routed((1, 0, 1, 1, 2), (1, 1, 1, 2, 1)),
        "cells.1.2": routed((1, 1, 2, 2, 2)),
    }
    before = {
        "cells.0.0": made["reduce1"],
        "cells.0.1": net.upsamplers["1"](made["reduce1"]),
        "cells.1.0": previous["cells.0.0"],
        "cells.1.1": previous["cells.0.1"],
        "cells.1.2": net.upsamplers["2"](previous["cells.0.1"]),
    }
    assert given.keys() == previous.keys()
    for name, (prev_prev, prev) in given.items():
        torch.testing.assert_close(prev, previous[name])
        torch.testing.assert_close(prev_prev, before[name])


@pytest.mark.parametrize("size", [(8, 8), (9, 13)])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_shapes_and_where_the_supernet_starts(scale, size):
    x = torch.rand(2, 3, *size)
    larger = F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
    assert torch.equal(supernet(scale, sigmoid=False, **SMALL)(x), larger)
    net = supernet(scale, **SMALL)
    y = net(x)
    assert y.shape == larger.shape and y.min() > 0 and y.max() < 1
    torch.nn.init.zeros_(net.head[-1].weight), torch.nn.init.zeros_(net.head[-1].bias)
    torch.testing.assert_close(net(x), larger.sigmoid())


def test_plain_and_recomputing_supernet_agree_on_every_gradient(monkeypatch):
    nets, x = [], torch.rand(2, 3, 9, 11, dtype=torch.float64)
    y = torch.rand(2, 3, 27, 33, dtype=torch.float64)
    for mixed_op in (MixedOp, PlainMixedOp):
        if mixed_op is PlainMixedOp:
            monkeypatch.setattr("srnas_fast.spaces.hinas.supernet.recomputed", lambda module, x: module(x))
        torch.manual_seed(0)
        net = supernet(3, mixed_op, **SMALL).double()
        with torch.no_grad():
            net.alpha.copy_(torch.linspace(-1, 1, net.alpha.numel()).view_as(net.alpha))
            net.beta += torch.linspace(-1, 1, 9).view_as(net.beta)
        L1SSIMLoss()(net(x), y).backward()
        nets.append(net)
    for (name, a), b in zip(nets[1].named_parameters(), nets[0].parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, msg=lambda text, name=name: f"{name}: {text}")
    for a, b in zip(nets[1].buffers(), nets[0].buffers(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_step_holds_little():
    """Of the paper's batch of 24 a sixth: its step stays below 0.6 GiB."""
    x, y, net = torch.rand(4, 3, 64, 64), torch.rand(4, 3, 256, 256), supernet()
    with LiveMemory() as memory:
        L1SSIMLoss()(net(x), y).backward()
    assert memory.peak < 0.6 * 2**30 * 4 / 24


def test_initial_parameters_derive_the_published_default():
    genotype = supernet().genotype()
    assert genotype.cells == [[("con_c_3x3", 0), ("con_c_3x3", 1)] * 3] * 2
    assert genotype.path == [0, 0] and genotype.layer2_reads == "stem2"


@pytest.mark.parametrize("path", [[0, 0], [0, 1], [1, 0], [1, 1], [1, 2]])
def test_every_path_can_be_found(path):
    net = supernet(**SMALL)
    with torch.no_grad():
        net.beta[0, 1 + path[0]] += 5
        net.beta[1 + path[0], 1 + path[1] - path[0]] += 5
    assert net.genotype().path == path


@pytest.mark.parametrize("cell, path, pyramid, skip_from, parameters, adds, adds_720p", DERIVED)
def test_derived_networks_have_the_published_counts(cell, path, pyramid, skip_from, parameters, adds, adds_720p):
    for scale in (2, 3, 4):
        net = derived(cell, path, pyramid=pyramid, scale=scale)
        assert net.skip_from == skip_from
        assert count_parameters(net) == parameters - 3_459 * (16 - scale**2)
        # Multi-Adds grow with the pixels, so that those of a small image tell those of every other.
        per_pixel = (adds - 3_456 * (16 - scale**2) * PIXELS) / PIXELS
        assert multi_adds(net, torch.zeros(1, 3, 8, 16)) == per_pixel * 8 * 16
    assert per_pixel * 320 * 180 == adds_720p


@pytest.mark.parametrize(
    "operation, path, parameters, adds",
    [
        ("skip_connect", [0, 0], {2: 222_444, 4: 263_952}, {2: 898_105_344, 4: 1_067_974_656}),
        ("dil_c_5x5", [1, 2], {2: 492_956, 4: 534_464}, {2: 2_001_797_120, 4: 2_171_666_432}),
    ],
)
def test_the_extremes(operation, path, parameters, adds):
    cell = [(operation, 0), (operation, 1)] * 3
    for scale in (2, 4):
        net = DerivedNetwork(Genotype([cell] * 2, path), SuperResolutionNetworkConfig(scale=scale))
        assert count_parameters(net) == parameters[scale]
        assert multi_adds(net, torch.zeros(1, 3, 64, 64)) == adds[scale]


def test_the_parts_of_a_derived_network():
    net = derived()
    counts = [count_parameters(part) for part in (net.stem1, net.stem2, net.reduce, net.features, net.skip)]
    assert counts == [1_856, 36_992, 27_648, 106_056, 2_400]
    assert [count_parameters(cell) for cell in net.cells] == [13_344, 29_040]
    assert [count_parameters(scaler) for pair in net.scalers for scaler in pair] == [1_056, 1_056, 1_584, 1_200]
    assert [count_parameters(part) for part in net.head] == [24_720, 18_048, 55_344]
    assert any(isinstance(module, SpatialPyramid) for module in net.modules())  # unless asked for without


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_it_starts_as_bicubic_of_any_size_and_is_not_clipped(scale):
    x = torch.rand(2, 3, 9, 13)
    net = derived(scale=scale, filters=4)
    larger = F.interpolate(x, size=(9 * scale, 13 * scale), mode="bicubic", align_corners=False)
    torch.testing.assert_close(net(x), larger)
    assert net(x, (0, 0, 99, 99)).shape == larger.shape and net(torch.rand(1, 3, 1, 1)).shape[-1] == scale
    torch.nn.init.constant_(net.head[-1].bias, 2.0)
    torch.testing.assert_close(net(x), larger + 2)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_tiles_give_the_result_of_the_whole_image(scale):
    torch.manual_seed(0)
    net = DerivedNetwork(random_genotype(2, 2, seed=1), SuperResolutionNetworkConfig(filters=4, scale=scale)).eval()
    torch.nn.init.normal_(net.head[-1].weight, std=0.1)
    side = net.reach + 7
    pixels = np.random.default_rng(0).integers(0, 256, (side + 20, 2 * side, 3), dtype=np.uint8)
    whole, tiled = (upscale_pixels(net, pixels, torch.device("cpu"), tile) for tile in (0, side))
    assert np.abs(whole - tiled).max() < 2e-3  # of 255 gray levels
    assert np.abs(whole).max() > 100


def test_the_reach_is_just_enough():
    torch.manual_seed(0)
    net = derived(filters=4, path=(1, 2), scale=2).double()
    torch.nn.init.normal_(net.head[-1].weight)
    size = 2 * net.radius + 9
    x = torch.rand(1, 3, size, size, dtype=torch.float64, requires_grad=True)
    net(x)[0, :, size, size].sum().backward()
    touched = (x.grad[0].abs().sum(0) != 0).nonzero() - size // 2
    assert net.radius - 4 <= touched.abs().max() <= net.radius
    assert net.reach == 3 * net.radius and net.grid == 1


def test_the_spaces_and_their_presets():
    for scale in (2, 3, 4):
        space = find_space(f"hinas-sr-x{scale}")
        for preset in ("paper", "demo", "smoke"):
            search, train = space.search_preset(preset), space.train_preset(preset)
            size, network = space.supernet_config(**search["supernet"]), space.network_config(**train["network"])
            assert size.scale == network.scale == scale and size.sigmoid == (preset == "paper")
            for settings, its_size in ((search, size), (train, network)):
                data = space.data(**settings["data"])
                assert data.patch % scale == 0 and data.patch // scale >= its_size.smallest
                space.task(data, its_size)
        paper = space.data(**space.search_preset("paper")["data"])
        assert (paper.patch, paper.batch, paper.steps(380)) == (64 * scale, 24, 16)
        assert space.train_preset("paper")["data"]["batch"] == 16 and space.network_config().pyramid


def test_the_task():
    task = HiNASSuperResolution(SuperResolutionData(), SuperResolutionNetworkConfig(scale=2))
    assert task.score(psnr=28.0, ssim=0.8) == pytest.approx(1.08) and task.architecture_share == 0.5
    with pytest.raises(InputError, match="data.patch is 14; give 16 or more"):
        HiNASSuperResolution(SuperResolutionData(patch=14), SuperResolutionNetworkConfig(scale=2))
    data = SuperResolutionData(validation_crop=16)  # the least: a window of SSIM within the border
    task = HiNASSuperResolution(data, SuperResolutionNetworkConfig(scale=2))
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.float64)
    assert task.quality(image, image)[1] == pytest.approx(1)


def test_genotype_round_trip_and_random_peers(tmp_path):
    space = find_space("hinas-sr-x3")
    genotype = space.random_genotype(space.supernet_config(), 0)
    space.save_genotype(genotype, tmp_path / "genotype.json")
    data = json.loads((tmp_path / "genotype.json").read_text())
    assert data["space"] == "hinas-sr-x3" and space.read_genotype(data) == genotype
    assert len(genotype.path) == 2 and genotype.nodes == 3


@pytest.mark.parametrize("config", [SuperResolutionSupernetConfig, SuperResolutionNetworkConfig])
@pytest.mark.parametrize("field, value", [("scale", 5), ("scale", "x4"), ("filters", 1)])
def test_bad_sizes_are_named(config, field, value):
    with pytest.raises(InputError, match=field):
        config(**{field: value})
