"""The HNAS space against the numbers of its published modules."""

import json
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F

from srnas_fast.errors import InputError
from srnas_fast.metrics import count_parameters, multi_adds
from srnas_fast.report import draw_architecture
from srnas_fast.spaces import find_space
from srnas_fast.spaces.hnas import (
    HNAS_A,
    HNAS_B,
    HNAS_C,
    SPACES,
    Controller,
    DerivedNetwork,
    Genotype,
    NetworkConfig,
    Supernet,
    SupernetConfig,
    random_genotype,
)
from srnas_fast.spaces.hnas.genotype import inputs_read
from srnas_fast.spaces.hnas.operations import NORMAL, SCALES, UPSAMPLING, ChannelAttention
from srnas_fast.train.tiles import upscale_in_tiles

MEAN_SHIFTS = 24  # parameters of the published network that are fixed, and that ours has not
PUBLISHED = {"A": HNAS_A, "B": HNAS_B, "C": HNAS_C}


def mean_shifts(side, scale):
    """The Multi-Adds of two published 1x1 convolutions of 3 to 3 channels, which only add the mean."""
    return 9 * (side**2 + (scale * side) ** 2)


# The candidates and their counts


def test_normal_candidates_have_the_published_names_order_and_weights():
    search = {name: count_parameters(make(8, True)) for name, make in NORMAL.items()}
    derived = {name: count_parameters(make(64, False)) for name, make in NORMAL.items()}
    assert list(search.items()) == [
        ("rcab", 1242),
        ("skip_connect", 0),
        ("sep_conv_3x3", 272),
        ("sep_conv_5x5", 528),
        ("dil_conv_3x3", 136),
        ("dil_conv_5x5", 264),
    ]
    assert list(derived.values()) == [76_629, 0, 9344, 11_392, 4672, 5696]


def test_upsampling_candidates_have_the_published_names_order_and_weights():
    weights = {name: [count_parameters(make(8, s)) for s in (1, 2, 3, 4)] for name, make in UPSAMPLING.items()}
    assert list(weights.items()) == [
        ("sub_pixel", [0, 2336, 5256, 4672]),
        ("deconvolution", [584, 584, 584, 1608]),
        ("bilinear", [0] * 4),
        ("nearest", [0] * 4),
        ("area", [0] * 4),
    ]
    derived = {name: [count_parameters(make(64, s)) for s in (1, 2)] for name, make in UPSAMPLING.items()}
    assert derived["sub_pixel"] == [0, 147_712] and derived["deconvolution"] == [36_928] * 2


@pytest.mark.parametrize("name", UPSAMPLING)
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_upsampling_candidates_enlarge_exactly(name, stride):
    x = torch.rand(2, 5, 7, 9, dtype=torch.float64)
    make = UPSAMPLING[name](5, stride).double()
    assert make(x).shape == (2, 5, 7 * stride, 9 * stride)
    if name in ("bilinear", "nearest", "area"):
        how = {"align_corners": False} if name == "bilinear" else {}
        torch.testing.assert_close(make(x), F.interpolate(x, scale_factor=stride, mode=name, **how))
    elif stride == 1 and name == "sub_pixel":
        assert torch.equal(make(x), x)


def normal_by_definition(name, op, x, search):
    """A candidate from the specification, with the weights of ``op`` in their order."""

    def norm(y, affine=None):
        if not search:
            return y
        y = (y - y.mean((0, 2, 3), keepdim=True)) / (y.var((0, 2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()
        return y if affine is None else y * affine[0].view(1, -1, 1, 1) + affine[1].view(1, -1, 1, 1)

    weights, channels = list(op.parameters()), x.shape[1]
    if name == "skip_connect":
        return x
    if name == "rcab":
        first, second = (weights[:4], weights[4:8]) if search else (weights[:2], weights[2:4])
        a, b, c, d = weights[-4:]
        y = norm(F.conv2d(x, *first[:2], padding=1), first[2:]).relu()
        y = norm(F.conv2d(y, *second[:2], padding=1), second[2:])
        means = y.mean((2, 3), keepdim=True)
        return x + y * F.conv2d(F.conv2d(means, a, b).relu(), c, d).sigmoid()
    size, dilation = int(name[-1]), 2 if name.startswith("dil") else 1
    for depthwise, pointwise in zip(weights[::2], weights[1::2], strict=True):
        pads = dilation * (size // 2)
        x = F.conv2d(F.conv2d(x.relu(), depthwise, None, 1, pads, dilation, channels), pointwise)
        x = norm(x)
    return x


@pytest.mark.parametrize("name", NORMAL)
@pytest.mark.parametrize("search", [True, False])
def test_normal_candidates_are_what_the_specification_says_in_training_and_evaluation(name, search):
    torch.manual_seed(0)
    op, x = NORMAL[name](6, search).double(), torch.randn(2, 6, 9, 7, dtype=torch.float64)
    for parameter in op.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    expected = normal_by_definition(name, op, x, search)
    torch.testing.assert_close(op(x), expected)
    torch.testing.assert_close(op.eval()(x), expected)
    assert not list(op.buffers())


# The supernet's counts


@pytest.mark.parametrize(
    "scale, enlarging, upsampling, all_upsampling, published",
    [
        (2, 2920, 28_464, 341_568, 772_843),
        (3, 5840, 51_824, 621_888, 1_053_163),
        (4, 6280, 55_344, 664_128, 1_095_403),
    ],
)
def test_the_supernet_has_the_published_parameters_without_the_dead_ones(
    scale, enlarging, upsampling, all_upsampling, published
):
    net, dead = Supernet(SupernetConfig(scale=scale)), 1088  # in each cell
    assert [count_parameters(m) for m in net.frame.stem] == [864, 64]
    assert count_parameters(net.frame.tail) == 867
    assert len(net.normal) == len(net.upsampling) == 12
    cell = net.normal[0]
    assert [count_parameters(read) for read in cell.readers] == [256, 256]
    assert [count_parameters(edge) for edge in cell.candidates.values()] == [2442] * 14
    assert count_parameters(cell.candidates) == 34_188 and count_parameters(cell) == 35_788 - dead
    assert count_parameters(net.normal) == 429_456 - 12 * dead
    cell = net.upsampling[0]
    edges = {name: count_parameters(edge) for name, edge in cell.candidates.items()}
    assert edges == {name: enlarging if name[0] in "01" else 584 for name in edges} and len(edges) == 14
    assert count_parameters(cell) == upsampling - dead
    assert count_parameters(net.upsampling) == all_upsampling - 12 * dead
    useful = {2: 746_707, 3: 1_027_027, 4: 1_069_267}[scale]
    assert 24 * dead == 26_112 and published - MEAN_SHIFTS - 24 * dead == useful
    assert count_parameters(net) == sum(p.numel() for p in net.network_parameters()) == useful
    assert not list(net.buffers())[1:] and net.frame.mean.shape == (3, 1, 1) and "frame.mean" not in net.state_dict()


NETS = {}


def supernet(scale=2):
    """The paper's, made once."""
    if scale not in NETS:
        NETS[scale] = Supernet(SupernetConfig(scale=scale))
    return NETS[scale]


# Multi-Adds for 48 x 48 pixels: at low resolution, and at high resolution x2, x3, x4
SEARCHED = {
    "rcab": (2_654_240, 10_616_864, 23_887_904, 42_467_360),
    "sep_conv_3x3": (626_688, 2_506_752, 5_640_192, 10_027_008),
    "sep_conv_5x5": (1_216_512, 4_866_048, 10_948_608, 19_464_192),
    "dil_conv_3x3": (313_344, 1_253_376, 2_820_096, 5_013_504),
    "dil_conv_5x5": (608_256, 2_433_024, 5_474_304, 9_732_096),
    "skip_connect": (0, 0, 0, 0),
    "reader": (589_824, 2_359_296, 5_308_416, 9_437_184),
}


@pytest.mark.parametrize("scale", SCALES)
def test_each_part_costs_the_published_multi_adds(scale):
    table = supernet(scale)._table("madds", 48)
    for name, costs in SEARCHED.items():
        assert (table[name, "low"], table[name, "high"]) == (costs[0], costs[scale - 1]), name
    assert table["stem", "low"] == 1_990_656
    assert table["tail", "high"] == (7_962_624, 17_915_904, 31_850_496)[scale - 2]
    assert table["sub_pixel", "enlarging"] == (5_308_416, 11_943_936, 26_542_080)[scale - 2]
    assert table["deconvolution", "enlarging"] == (1_327_104, 1_327_104, 3_686_400)[scale - 2]
    assert table["deconvolution", "high"] == (5_308_416, 11_943_936, 21_233_664)[scale - 2]
    assert not any(table[name, at] for name in ("bilinear", "nearest", "area") for at in ("enlarging", "high"))
    assert table["sub_pixel", "high"] == 0
    assert mean_shifts(48, scale) == 20_736 + (82_944, 186_624, 331_776)[scale - 2]
    assert multi_adds(ChannelAttention(8), torch.zeros(1, 8, 48, 48)) == 32


UNIFORM = {  # one normal candidate on all edges, interpolations in the upsampling cell, x2, with the mean shifts
    "rcab": (22_413_568, 89_653_504, 997_425_152, 795_705_344, 593_985_536, 392_265_728, 257_785_856),
    "skip_connect": (1_179_648, 4_718_592, 63_141_120, 52_524_288, 41_907_456, 31_290_624, 24_212_736),
    "sep_conv_3x3": (6_193_152, 24_772_608, 283_735_296, 227_996_928, 172_258_560, 116_520_192, 79_361_280),
    "sep_conv_5x5": (10_911_744, 43_646_976, 491_353_344, 393_147_648, 294_941_952, 196_736_256, 131_265_792),
    "dil_conv_3x3": (3_686_400, 14_745_600, 173_438_208, 140_260_608, 107_083_008, 73_905_408, 51_787_008),
    "dil_conv_5x5": (6_045_696, 24_182_784, 277_247_232, 222_835_968, 168_424_704, 114_013_440, 77_739_264),
}
EVERY_EDGE = [(0, 2), (1, 2), (0, 3), (1, 3), (0, 4), (1, 4), (0, 5), (1, 5)]


def uniform(normal, position, upsampling="nearest", cells=12):
    """A genotype of one operation in each kind of cell, which reads both inputs."""
    return Genotype([(normal, *e) for e in EVERY_EDGE], [(upsampling, *e) for e in EVERY_EDGE], position, cells)


@pytest.mark.parametrize("name", UNIFORM)
def test_paths_of_one_candidate_cost_the_published_multi_adds(name):
    low, high, *costs = UNIFORM[name]
    assert 2 * SEARCHED["reader"][0] + 8 * SEARCHED[name][0] == low
    assert 2 * SEARCHED["reader"][1] + 8 * SEARCHED[name][1] == high
    for position, cost in zip((0, 3, 6, 9, 11), costs, strict=True):
        got = supernet().cost(uniform(name, position), "madds", 48) + mean_shifts(48, 2)
        assert got == cost == costs[0] - position * (high - low)


PATHS = [  # genotype, scale, position: convolutions + transposed ones, with the mean shifts
    ("A", 2, 0, 225_342_720, 7_962_624),
    ("A", 2, 5, 152_352_000, 7_962_624),
    ("A", 2, 9, 93_959_424, 7_962_624),
    ("A", 2, 11, 64_763_136, 7_962_624),
    ("A", 4, 11, 88_899_840, 28_606_464),
    ("B", 2, 0, 380_319_328, 1_327_104),
    ("B", 2, 5, 258_115_168, 1_327_104),
    ("B", 2, 9, 160_351_840, 1_327_104),
    ("B", 2, 11, 111_470_176, 1_327_104),
    ("B", 4, 11, 178_074_208, 3_686_400),
    ("C", 2, 0, 383_121_344, 10_616_832),
    ("C", 2, 5, 258_152_384, 10_616_832),
    ("C", 2, 9, 158_177_216, 10_616_832),
    ("C", 2, 11, 108_189_632, 10_616_832),
    ("C", 4, 11, 153_560_000, 42_467_328),
]


@pytest.mark.parametrize("name, scale, position, convolutions, transposed", PATHS)
def test_published_genotypes_cost_the_published_multi_adds(name, scale, position, convolutions, transposed):
    genotype = replace(PUBLISHED[name], position=position)
    cost = supernet(scale).cost(genotype, "madds", 48)
    if name == "B":
        # The edge (sub_pixel, 3, 4) stands there twice; at stride 1 it is free, run once or twice.
        assert genotype.upsampling[4] == genotype.upsampling[5]
    assert cost + mean_shifts(48, scale) == convolutions + transposed


@pytest.mark.parametrize("name", PUBLISHED)
def test_and_so_does_a_run_of_the_path(name):
    genotype, x = PUBLISHED[name], torch.zeros(1, 3, 48, 48)
    assert multi_adds(supernet(), x, genotype) == supernet().cost(genotype, "madds", 48)


def small(scale=2, cells=4, channels=6, **config):
    torch.manual_seed(0)
    return Supernet(SupernetConfig(channels=channels, cells=cells, scale=scale, **config)).double()


def used(net, x, genotype):
    """Names of the parameters that get a gradient."""
    net.zero_grad()
    net(x, genotype).square().mean().backward()
    return {name for name, p in net.named_parameters() if p.grad is not None}


ODD = [  # genotypes whose last cell, or whose all, leave something unread
    Genotype([("rcab", 0, 2)] * 2 + [("rcab", 0, t) for t in (3, 3, 4, 4, 5, 5)], HNAS_B.upsampling, 1, 4),
    Genotype([("rcab", 1, 2)] * 2 + [("rcab", 2, t) for t in (3, 3, 4, 4, 5, 5)], HNAS_A.upsampling, 0, 4),
    Genotype([("rcab", 0, 2)] * 2 + [("rcab", 2, t) for t in (3, 3, 4, 4, 5, 5)], HNAS_C.upsampling, 3, 4),
]


@pytest.mark.parametrize("scale", SCALES)
def test_costs_are_those_of_the_path_and_only_the_path_learns(scale):
    net, side = small(scale), 6
    parameters = dict(net.named_parameters())
    x = torch.rand(1, 3, side, side, dtype=torch.float64)
    for genotype in [random_genotype(seed, cells=4) for seed in range(25)] + ODD:
        assert net.cost(genotype, "madds", side) == multi_adds(net, x, genotype)
        names = used(net, x, genotype)
        assert net.cost(genotype, "params", side) == sum(parameters[name].numel() for name in names)
        for name in names:
            kind, cell, *_ = name.split(".")
            assert kind == "frame" or (kind == "upsampling") == (int(cell) == genotype.position), name


def test_cells_that_nobody_reads_do_not_run():
    first, second, third = ODD
    assert first.wiring() == [(0, (-1, -1)), (1, (-1, 0)), (3, (1, 2))]
    assert [cell for cell, _ in second.wiring()] == [0, 1, 2, 3]
    assert inputs_read(third.normal) == [0] and inputs_read(third.upsampling) == [0, 1]
    assert [cell for cell, _ in third.wiring()] == [0, 1, 2, 3]
    names = used(small(), torch.rand(1, 3, 5, 5, dtype=torch.float64), first)
    assert not [name for name in names if name.startswith("normal.2.") or ("normal" in name and ".readers.1." in name)]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("size", [(2, 2), (5, 7), (9, 4)])
def test_output_shapes_at_odd_sizes(scale, size):
    net, x = small(scale), torch.rand(2, 3, *size, dtype=torch.float64)
    for name, genotype in PUBLISHED.items():
        genotype = replace(genotype, position=2, cells=4)
        larger = (2, 3, scale * size[0], scale * size[1])
        assert net(x, genotype).shape == larger, name
        derived = DerivedNetwork(genotype, NetworkConfig(channels=6, scale=scale)).double()
        assert derived(x).shape == larger, name
        assert derived(x[..., :1, :1]).shape == (2, 3, scale, scale)


def path_by_definition(net, x, genotype):
    """The supernet's path from the specification: every edge run on its own, the upsampling cell evaluated twice."""

    def cell_of(cell, s0, s1, edges):
        states = {0: cell.readers[0](s0), 1: cell.readers[1](s1)}
        for i in range(4):
            parts = [cell.candidates[f"{f}-{t}"][cell.names.index(op)](states[f]) for op, f, t in edges[2 * i :][:2]]
            states[i + 2] = sum(parts)
        return torch.cat([states[i] for i in (2, 3, 4, 5)], 1)

    mean = torch.tensor([0.4488, 0.4371, 0.4040]).to(x).view(3, 1, 1) * 255
    s0 = s1 = net.frame.stem(x * 255 - mean)
    for k in range(genotype.cells):
        if k == genotype.position:
            s0, s1 = (cell_of(net.upsampling[k], s0, s1, genotype.upsampling) for _ in range(2))
        else:
            s0, s1 = s1, cell_of(net.normal[k], s0, s1, genotype.normal)
    return (net.frame.tail(s1) + mean) / 255


@pytest.mark.parametrize("scale", SCALES)
def test_a_path_is_what_the_specification_says_with_gradients(scale):
    net, x = small(scale), torch.rand(2, 3, 7, 6, dtype=torch.float64)
    names, parameters = zip(*net.named_parameters(), strict=True)
    for genotype in [random_genotype(seed, cells=4) for seed in range(4)] + ODD:
        got, expected = net(x, genotype), path_by_definition(net, x, genotype)
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)  # the mean is kept in float32
        torch.testing.assert_close(net.eval()(x, genotype), got)
        gradients = (
            torch.autograd.grad((y - 0.5).square().sum(), parameters, allow_unused=True) for y in (got, expected)
        )
        for name, one, other in zip(names, *gradients, strict=True):
            assert (one is None) == (other is None), name
            if one is not None:
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


def test_the_same_edge_twice_doubles():
    torch.manual_seed(0)
    cell = small(cells=1).normal[0]
    x = torch.randn(1, 24, 6, 6, dtype=torch.float64)
    edges = [("rcab", 0, 2), ("rcab", 0, 2)] + [("skip_connect", 2, t) for t in (3, 3, 4, 4, 5, 5)]
    runs = []
    cell.operation(edges[0]).register_forward_hook(lambda *_: runs.append(1))
    y = cell((x, None), edges)
    assert len(runs) == 1
    one = cell.operation(edges[0])(cell.readers[0](x))
    assert torch.equal(y, torch.cat([one + one, *[2 * (one + one)] * 3], 1))


def test_foreign_genotypes_and_images_are_refused():
    net = small(candidates=["rcab", "skip_connect"])
    with pytest.raises(InputError, match="of 12 cells.*this supernet has 4 cells and rcab, skip_connect"):
        net(torch.rand(1, 3, 9, 9), HNAS_A)
    with pytest.raises(InputError, match="sep_conv_3x3"):
        net.cost(uniform("sep_conv_3x3", 0, cells=4))
    good = random_genotype(0, ["rcab"], 4)
    for shape in ((1, 3, 1, 9), (1, 1, 9, 9), (3, 9, 9)):
        with pytest.raises(InputError, match="from 2 up"):
            net(torch.rand(shape), good)
    with pytest.raises(InputError, match="from 1 up"):
        DerivedNetwork(good, NetworkConfig(channels=4))(torch.rand(1, 1, 9, 9))
    with pytest.raises(InputError, match="params or madds"):
        net.cost(good, "seconds")
    with pytest.raises(InputError, match="1 pixels a side"):
        net.cost(good, "madds", 1)


# Derived networks


DERIVED = [  # parameters, normal cell, upsampling cell, Multi-Adds of 48 x 48 and 640 x 360 with the mean shifts
    ("A", 2, 974_043, 3_063_059_712 + 509_607_936, 306_305_971_200 + 50_960_793_600),
    ("B", 2, 2_141_314, 4_821_649_536 + 84_934_656, 482_162_026_368 + 8_493_465_600),
    ("C", 2, 2_542_569, 5_588_155_392 + 679_477_248, 558_809_684_736 + 67_947_724_800),
    ("A", 4, 1_105_115, 7_359_586_560 + 1_830_813_696, None),
    ("B", 4, 2_502_274, 7_730_910_336 + 235_929_600, None),
    ("C", 4, 2_690_281, 7_138_461_696 + 2_717_908_992, None),
]
CELLS = {"A": (74_240, 143_552), "B": (160_213, 365_120), "C": (206_762, 254_336)}


@pytest.mark.parametrize("name, scale, parameters, square, image", DERIVED)
def test_derived_networks_have_the_published_counts(name, scale, parameters, square, image):
    genotype = PUBLISHED[name]
    net = DerivedNetwork(genotype, NetworkConfig(scale=scale)).to("meta")
    assert count_parameters(net) == parameters - MEAN_SHIFTS
    assert [count_parameters(net.frame.stem), count_parameters(net.frame.tail)] == [6912, 6915]
    cells = [count_parameters(net.cells[str(k)]) for k in range(12)]
    assert all(count_parameters(read) == 16_384 for cell in net.cells.values() for read in cell.readers)
    normal, upsampling = CELLS[name]
    assert cells == [upsampling if k == genotype.position and scale == 2 else normal for k in range(12)] or scale == 4
    assert multi_adds(net, torch.empty(1, 3, 48, 48, device="meta")) == square - mean_shifts(48, scale)
    if image is not None:
        shifts = 9 * 640 * 360 * (1 + scale**2)
        assert multi_adds(net, torch.empty(1, 3, 360, 640, device="meta")) == image - shifts
    if (name, scale) == ("A", 2):
        assert round(image / 1e9, 1) == 357.3


@pytest.mark.parametrize("scale", SCALES)
def test_a_derived_network_is_what_the_specification_says(scale):
    for genotype in [random_genotype(seed, cells=4) for seed in range(6)] + ODD:
        torch.manual_seed(0)
        net = DerivedNetwork(genotype, NetworkConfig(channels=5, scale=scale)).double()
        x = torch.rand(2, 3, 8, 7, dtype=torch.float64)
        mean = torch.tensor([0.4488, 0.4371, 0.4040]).to(x).view(3, 1, 1) * 255
        s0 = s1 = net.frame.stem(x * 255 - mean)
        for k in range(4):
            edges = genotype.upsampling if k == genotype.position else genotype.normal
            y = None
            if str(k) in net.cells:
                cell = net.cells[str(k)]
                states = {s: read((s0, s1)[s]) for s, read in zip(cell.read, cell.readers, strict=True)}
                for i in range(4):
                    (_, f, t), (_, g, _) = edges[2 * i : 2 * i + 2]
                    states[t] = cell.operations[2 * i](states[f]) + cell.operations[2 * i + 1](states[g])
                y = torch.cat([states[t] for t in (2, 3, 4, 5)], 1)
            s0, s1 = (y, y) if k == genotype.position else (s1, y)
        expected = (net.frame.tail(s1) + mean) / 255
        torch.testing.assert_close(net(x), expected, rtol=1e-6, atol=1e-7)
        assert torch.equal(net(x, (3, 5, 100, 100)), net(x))
        net(x).sum().backward()
        assert all(p.grad is not None for p in net.parameters())
        assert not [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]


def test_equal_edges_own_their_modules():
    net = DerivedNetwork(HNAS_B, NetworkConfig(channels=4, scale=2))
    assert HNAS_B.upsampling[4] == HNAS_B.upsampling[5]
    cell = net.cells["11"]
    assert cell.operations[4] is not cell.operations[5]


def test_untrained_it_makes_gray_of_images_and_not_noise():
    torch.manual_seed(0)
    for genotype in PUBLISHED.values():
        with torch.no_grad():
            y = DerivedNetwork(genotype, NetworkConfig(channels=16))(torch.rand(1, 3, 24, 24))
        assert y.min() > 0.2 and y.max() < 0.7


def positive(net):
    """With weights that let every pixel through that is in reach."""
    for name, parameter in net.named_parameters():
        parameter.data.fill_(0 if name.endswith("bias") else 1 / parameter[0].numel())
    return net


def one_sided(scale, name, position):
    """Genotypes of every kind of edge, to hold the reach to what the gradient says."""
    up = {"mixed": HNAS_C.upsampling}.get(name) or [(name, *edge) for edge in EVERY_EDGE]
    normal = [("dil_conv_3x3", 0, 2), ("skip_connect", 1, 2), ("sep_conv_3x3", 2, 3), ("skip_connect", 0, 3)]
    normal += [("skip_connect", 1, 4), ("dil_conv_5x5", 0, 4), ("skip_connect", 3, 5), ("sep_conv_5x5", 1, 5)]
    return DerivedNetwork(Genotype(normal, up, position, 3), NetworkConfig(channels=3, scale=scale))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", [*UPSAMPLING, "mixed"])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_the_reach_is_exact(scale, name, position):
    net = positive(one_sided(scale, name, position).double())
    reach = net.radius
    side, middle = 2 * reach + 5, reach + 2
    x = torch.ones(1, 3, 3, side, dtype=torch.float64, requires_grad=True)
    block = net(x)[..., middle * scale : (middle + 1) * scale]
    (gradient,) = torch.autograd.grad(block.sum(), x)
    seen = gradient.abs().amax((0, 1, 2))
    distance = (torch.nonzero(seen > 1e-14 * seen.max())[:, 0] - middle).abs()
    assert distance.max() == reach


@pytest.mark.parametrize("scale", SCALES)
def test_in_parts_that_share_enough_it_makes_the_whole_image(scale):
    torch.manual_seed(0)
    genotype = replace(HNAS_A, position=1, cells=2)
    net = DerivedNetwork(genotype, NetworkConfig(channels=4, scale=scale)).eval().double()
    overlap, x = net.reach, torch.rand(1, 3, 61, 97, dtype=torch.float64)
    with torch.no_grad():
        whole = net(x)
        parts = upscale_in_tiles(net, x, scale, overlap + 11, overlap, net.grid, placed=True)
    torch.testing.assert_close(parts, whole)


def test_another_scale_starts_from_the_weights_of_the_first():
    x2, x3, wide = (DerivedNetwork(HNAS_B, NetworkConfig(c, s)) for c, s in ((4, 2), (4, 3), (5, 3)))
    own = {name: value.clone() for name, value in x3.state_dict().items()}
    x3.start_from(x2)
    for name, value in x3.state_dict().items():
        assert torch.equal(value, own[name] if name.startswith("cells.11.") else x2.state_dict()[name])
    again = DerivedNetwork(HNAS_B, NetworkConfig(4, 3))
    again.start_from(x3)
    assert all(map(torch.equal, again.state_dict().values(), x3.state_dict().values()))
    for other in (wide, DerivedNetwork(HNAS_A, NetworkConfig(4, 3))):
        with pytest.raises(InputError, match="cannot start from"):
            other.start_from(x2)


@pytest.mark.slow
@pytest.mark.parametrize("name, scale", [("A", 3), ("B", 4)])
def test_onnx_of_any_size(name, scale, tmp_path):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    runtime = pytest.importorskip("onnxruntime")
    from safetensors.torch import save_file

    from srnas_fast.train import export
    from srnas_fast.train.load import NETWORK

    torch.manual_seed(0)
    genotype = replace(PUBLISHED[name], position=1, cells=2)
    net = DerivedNetwork(genotype, NetworkConfig(channels=4, scale=scale)).eval()
    config = {"genotype": json.dumps(asdict(genotype)), "network": json.dumps(asdict(net.config))}
    save_file(net.state_dict(), tmp_path / "net.safetensors", {"format": NETWORK, "space": f"hnas-x{scale}"} | config)
    export(tmp_path / "net.safetensors", tmp_path / "net.onnx")
    session = runtime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    x = torch.rand(1, 3, 7, 12)
    (found,) = session.run(["restored"], {"image": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), net(x), rtol=0, atol=1e-5)


# Genotypes


@pytest.mark.parametrize("name", PUBLISHED)
def test_genotypes_survive_their_file(name, tmp_path):
    space, genotype = find_space("hnas-x3"), PUBLISHED[name]
    space.save_genotype(genotype, tmp_path / "genotype.json")
    data = json.loads((tmp_path / "genotype.json").read_text())
    assert data["space"] == "hnas-x3" and data["position"] == genotype.position and data["cells"] == 12
    again = space.read_genotype(data)
    assert again == genotype and hash(again) == hash(genotype)
    assert Genotype(list(genotype.normal), [list(e) for e in genotype.upsampling], genotype.position) == genotype


def test_texts_and_pictures(tmp_path):
    assert str(HNAS_A) == (
        "normal [skip(1) sep5(1)] [dil3(0) dil5(1)] [skip(1) dil3(1)] [dil5(1) sep3(4)], upsampling at 9 of 12 "
        "[deconv(0) bilinear(0)] [area(1) deconv(0)] [area(3) bilinear(0)] [bilinear(1) deconv(3)]"
    )
    assert "sub_pixel(1)" in str(HNAS_B) and "rcab(1)" in str(HNAS_B) and "nearest(1)" in str(HNAS_B)
    (one, normal), (two, upsampling), (three, network) = HNAS_A.graph()
    assert (one, two, three) == ("normal cell", "upsampling cell", "network")
    assert ("prev", "node 1", "sep_conv_5x5") in normal and ("node 3", "node 4", "sep_conv_3x3") in normal
    assert ("prev-prev", "node 1", "deconvolution") in upsampling and ("node 4", "out", "") in upsampling
    assert [source for source, _, _ in network] == ["stem", "9 LR cells", "upsampling", "2 HR cells"]
    assert [source for source, _, _ in HNAS_B.graph()[2][1]] == ["stem", "11 LR cells", "upsampling"]
    assert [source for source, _, _ in ODD[1].graph()[2][1]] == ["stem", "upsampling", "3 HR cells"]
    assert ("upsampling", "1 HR cells", "") in ODD[0].graph()[2][1]  # the other is read by nobody
    draw_architecture(HNAS_A.graph(), tmp_path / "a.png")


GOOD = json.loads(json.dumps(asdict(HNAS_A)))


def changed(kind, index, edge):
    return GOOD | {kind: [edge if i == index else e for i, e in enumerate(GOOD[kind])]}


@pytest.mark.parametrize(
    "data, message",
    [
        (GOOD | {"normal": GOOD["normal"][:7]}, "normal edges are .*give 8 of"),
        (GOOD | {"upsampling": []}, r"upsampling edges are \[\]; give 8 of"),
        (GOOD | {"normal": "rcab" * 2}, "give 8 of"),
        (GOOD | {"normal": {str(i): i for i in range(8)}}, "give 8 of"),
        (changed("normal", 0, ["warp", 1, 2]), "'warp'; known: rcab, skip_connect.*FILE.py:CLASS"),
        (changed("upsampling", 3, ["warp", 1, 3]), "'warp'; known: sub_pixel, deconvolution"),
        (changed("upsampling", 3, ["rcab", 1, 3]), "'rcab'; known: sub_pixel"),
        (changed("normal", 0, ["area", 1, 2]), "'area'; known: rcab"),
        (changed("normal", 0, ["foreign_ops.py:Block", 1, 2]), "only you can let run"),
        (changed("upsampling", 0, ["foreign_ops.py:Block", 1, 2]), "unknown upsampling operation"),
        (changed("normal", 0, ["rcab", 2, 2]), "edge 0 .* leads to node 2 from a state of 0 to 1"),
        (changed("normal", 0, ["rcab", -1, 2]), "edge 0 .* from a state of 0 to 1"),
        (changed("normal", 2, ["rcab", 0, 2]), "edge 2 .* leads to node 3"),
        (changed("normal", 2, ["rcab", 0, 3, 1]), "edge 2 .* give"),
        (changed("normal", 2, ["rcab", 0]), "edge 2 .* give"),
        (changed("normal", 2, ["rcab", 0.0, 3]), "edge 2 .* give"),
        (changed("normal", 2, ["rcab", True, 3]), "edge 2 .* give"),
        (changed("normal", 2, [["rcab"], 1, 3]), "edge 2 .* give"),
        (changed("normal", 2, None), "edge 2 .* give"),
        (changed("normal", 2, "rcab"), "edge 2 .* give"),
        (GOOD | {"position": 12}, "position is 12; of 12 cells give one from 0 to 11"),
        (GOOD | {"position": -1}, "position is -1"),
        (GOOD | {"position": 1.0}, "position is 1.0"),
        (GOOD | {"position": None}, "position is None"),
        (GOOD | {"cells": 0}, "cells is 0"),
        (GOOD | {"cells": "12"}, "cells is '12'"),
        ({"normal": GOOD["normal"]}, "no HNAS genotype, it lacks or spoils 'upsampling'"),
        ([1, 2], "no HNAS genotype"),
        ({}, "no HNAS genotype"),
    ],
)
def test_foreign_files_are_refused_in_one_line(data, message):
    with pytest.raises(InputError, match=message) as caught:
        Genotype.from_dict(data)
    assert "\n" not in str(caught.value)


def test_random_genotypes_take_every_decision():
    drawn = [random_genotype(seed, cells=3) for seed in range(60)]
    assert len({str(genotype) for genotype in drawn}) == 60
    assert {genotype.position for genotype in drawn} == {0, 1, 2}
    for kind, known in (("normal", NORMAL), ("upsampling", UPSAMPLING)):
        edges = [edge for genotype in drawn for edge in getattr(genotype, kind)]
        for target in (2, 3, 4, 5):
            found = {(op, source) for op, source, t in edges if t == target}
            assert {op for op, _ in found} == set(known) and {s for _, s in found} == set(range(target))
    share = sum(op == "rcab" for genotype in drawn for op, _, _ in genotype.normal) / (8 * 60)
    assert share == pytest.approx(1 / 6, abs=0.05)


# Settings


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"channels": 2}, "channels is 2"),
        ({"cells": 0}, "cells is 0"),
        ({"scale": 5}, "scale is 5; known: 2, 3, 4"),
        ({"candidates": []}, "at least one"),
        ({"candidates": "rcab"}, "at least one"),
        ({"candidates": ["rcab", "rcab"]}, "twice"),
        ({"candidates": ["warp"]}, "'warp'; known: rcab"),
        ({"candidates": [3]}, "3; known: rcab"),
        ({"candidates": ["nowhere.py:Block"]}, "nowhere.py: no such Python file"),
    ],
)
def test_bad_sizes_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        SupernetConfig(**settings)
    if settings.keys() <= {"channels", "scale"}:
        with pytest.raises(InputError, match=message):
            NetworkConfig(**settings)


def test_the_spaces_are_known_with_their_presets():
    assert [space.name for space in SPACES] == ["hnas-x2", "hnas-x3", "hnas-x4"]
    for scale, space in zip(SCALES, SPACES, strict=True):
        assert find_space(space.name) is space
        assert space.algorithm == "reinforce" and space.policy is Controller
        assert space.search_presets.keys() == space.train_presets.keys() == {"paper", "demo", "smoke"}
        for name in space.search_presets:
            search, train = space.search_preset(name), space.train_preset(name)
            config, size = SupernetConfig(**search["supernet"]), NetworkConfig(**train["network"])
            assert config.scale == size.scale == scale
            task = space.task(space.data(**search["data"]), config)
            space.task(space.data(**train["data"]), size)
            assert task.architecture_share == 0.6
            assert search["data"]["patch"] % scale == train["data"]["patch"] % scale == 0
            assert space.loss(**search["loss"]).hfen == space.loss(**train["loss"]).hfen == 0
            assert space.random_genotype(config, 0).cells == config.cells
        assert SupernetConfig(**space.search_preset("paper")["supernet"]) == SupernetConfig(scale=scale)


def test_the_paper_s_patches_have_the_pixels_that_the_reward_counts_by():
    from srnas_fast.search.reinforce import RewardConfig

    patches = {space.name: space.search_preset("paper")["data"]["patch"] for space in SPACES}
    assert patches == {"hnas-x2": 96, "hnas-x3": 144, "hnas-x4": 192}
    for scale, space in zip(SCALES, SPACES, strict=True):
        assert space.train_preset("paper")["data"]["patch"] == patches[space.name] == RewardConfig().side * scale


def test_the_paper_s_epochs_have_the_paper_s_steps():
    from srnas_fast.search.reinforce import ReinforceConfig, RewardConfig
    from srnas_fast.train.train import TrainConfig

    (space, *_) = SPACES
    for preset in space.search_presets.values():
        ReinforceConfig(**preset["search"])
        RewardConfig(**preset.get("reward", {}))
    paper, data = space.search_preset("paper"), space.data(**space.search_preset("paper")["data"])
    assert data.steps(320) == paper["search"]["steps"] == 200
    assert data.steps(480) == ReinforceConfig(**paper["search"]).controller_steps == 300
    train = space.train_preset("paper")
    recipe = TrainConfig(**train["train"])
    assert recipe.iterations == 300 * space.data(**train["data"]).steps(800) == 300_000
    assert recipe.rate(0) == 1e-3 and recipe.rate(299_999) < 1e-5


# Candidates of the user's own


OWN = """
import torch
from torch import nn

class Blur(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)

    def forward(self, x):
        return self.conv(x)

class Normed(nn.Sequential):
    def __init__(self, channels):
        super().__init__(nn.Conv2d(channels, channels, 3, padding=1), nn.Sequential(nn.BatchNorm2d(channels)))

class InPlace(nn.Sequential):
    def __init__(self, channels):
        super().__init__(nn.ReLU(inplace=True), nn.Conv2d(channels, channels, 3, padding=1))

class Shrinks(nn.Conv2d):
    def __init__(self, channels):
        super().__init__(channels, channels, 3)

class Raises(nn.Module):
    def __init__(self, channels):
        raise ValueError("two\\nlines")

class Wants(nn.Module):
    def __init__(self, channels, more):
        super().__init__()

def number(channels):
    return 3

class Pair(nn.Module):
    def __init__(self, channels):
        super().__init__()

    def forward(self, x):
        return x, x

LIMIT = 3
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    path = tmp_path_factory.mktemp("code") / "hnas_own_ops.py"
    path.write_text(OWN)
    return path


def test_a_candidate_of_one_s_own_is_searched_kept_and_derived(own, tmp_path):
    config = SupernetConfig(channels=4, cells=3, scale=3, candidates=["rcab", f"{own}:Blur"])
    assert config.names == ["rcab", "hnas_own_ops.py:Blur"]
    net, controller = Supernet(config), Controller(config)
    space = find_space("hnas-x3")
    genotype = controller.sample(torch.Generator().manual_seed(0)).genotype
    assert {name for name, _, _ in genotype.normal} == set(config.names) and "Blur(" in str(genotype)
    assert space.random_genotype(config, 5).cells == 3
    x = torch.rand(1, 3, 6, 6)
    assert net(x, genotype).shape == (1, 3, 18, 18)
    assert net.cost(genotype, "madds", 6) == multi_adds(net, x, genotype)
    space.save_genotype(genotype, tmp_path / "genotype.json")
    again = space.read_genotype(json.loads((tmp_path / "genotype.json").read_text()))
    assert again == genotype and str(own.parent) not in (tmp_path / "genotype.json").read_text()
    derived = DerivedNetwork(again, NetworkConfig(channels=4, scale=3))
    assert derived(x).shape == (1, 3, 18, 18) and derived.radius > 4
    assert any(type(m).__name__ == "Blur" for m in derived.modules())


@pytest.mark.parametrize(
    "name, message",
    [
        ("Shrinks", r"hnas_own_ops.py:Shrinks makes \(1, 4, 6, 6\) of \(1, 4, 8, 8\); .* keeps the shape"),
        ("InPlace", "hnas_own_ops.py:InPlace changes its input in place, which other edges read, .* inplace=False"),
        ("Raises", "hnas_own_ops.py:Raises .*ValueError: two lines"),
        ("Wants", "hnas_own_ops.py:Wants .*TypeError"),
        ("Pair", r"hnas_own_ops.py:Pair makes a tuple of \(1, 4, 8, 8\)"),
    ],
)
def test_candidates_that_do_not_fit_are_refused_in_one_line(own, name, message):
    config = SupernetConfig(channels=4, cells=1, candidates=["rcab", f"{own}:{name}"])
    genotype = uniform(f"hnas_own_ops.py:{name}", 0, cells=2)
    for make in (lambda: Supernet(config), lambda: DerivedNetwork(genotype, NetworkConfig(channels=4))):
        with pytest.raises(InputError, match=message) as caught:
            make()
        assert "\n" not in str(caught.value)


def test_batch_norms_of_one_s_own_keep_no_running_statistics_in_a_search(own):
    net = Supernet(SupernetConfig(channels=4, cells=2, candidates=[f"{own}:Normed"]))
    assert [name for name, _ in net.named_buffers()] == ["frame.mean"]
    genotype, x = uniform("hnas_own_ops.py:Normed", 1, cells=2), torch.rand(2, 3, 6, 6)
    trained = net(x, genotype)
    assert torch.equal(net.eval()(x, genotype), trained)  # a path is measured by what it is rewarded for
    derived = DerivedNetwork(genotype, NetworkConfig(channels=4))
    assert any(name.endswith("running_mean") for name, _ in derived.named_buffers())


@pytest.mark.parametrize("name, message", [("LIMIT", "class"), ("number", "class"), ("Missing", "holds no 'Missing'")])
def test_what_is_no_candidate_is_refused_at_once(own, name, message):
    with pytest.raises(InputError, match=message):
        SupernetConfig(candidates=[f"{own}:{name}"])


def test_a_candidate_under_two_names_is_one(own):
    with pytest.raises(InputError, match="twice"):
        SupernetConfig(candidates=[f"{own}:Blur", f"{own.parent}/./hnas_own_ops.py:Blur"])
