"""The TrilevelNAS space against the numbers of AutoGAN-Distiller's modules and of its own tree."""

import json
from dataclasses import asdict, replace
from itertools import product
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from srnas_fast.errors import InputError
from srnas_fast.metrics import LiveMemory, count_parameters, multi_adds
from srnas_fast.mixed import MixedOp, PlainMixedOp
from srnas_fast.report import draw_architecture
from srnas_fast.search import BilevelConfig, ComplexityConfig, RunConfig
from srnas_fast.search import search as search_images
from srnas_fast.search.bilevel import _penalty
from srnas_fast.simplex import order_penalty, sorted_sparsestmax, sparsestmax
from srnas_fast.spaces import check_space, find_space, own
from srnas_fast.spaces.check import differentiable
from srnas_fast.spaces.trilevel import (
    B1,
    SPACES,
    DerivedNetwork,
    Genotype,
    Lattice,
    NetworkConfig,
    Supernet,
    SupernetConfig,
    Tree,
    inherit,
    random_genotype,
)
from srnas_fast.spaces.trilevel.operations import (
    CANDIDATES,
    DERIVED,
    channels_of,
    costs_of,
    made,
    narrowed,
    parameters_of,
    supernet_form,
)
from srnas_fast.spaces.trilevel.supernet import _Scaled
from srnas_fast.train import TrainConfig
from srnas_fast.train.tiles import upscale_in_tiles

WIDTHS = [24, 32, 40, 56, 64]


# The tree


def test_the_tree_has_the_published_counts():
    tree = Tree(cells=5, searched=4, ups=2)
    assert (len(tree.nodes), len(tree.cells), len(tree.ups)) == (55, 35, 20)
    assert len(tree.paths()) == 15 and {len(path) for path in tree.paths()} == {7}
    levels = [[node.level for node in tree.nodes].count(level) for level in range(3)]
    assert levels == [5, 15, 35]
    assert [list(tree.cells.values()).count(level) for level in range(3)] == [5, 10, 20]
    assert [list(tree.ups.values()).count(level) for level in (1, 2)] == [5, 15]
    leaves = {node.name for node in tree.nodes} - {step.source for node in tree.nodes for step in node.steps}
    assert len(leaves) == 15 and len(tree.nodes) - len(leaves) - 1 == 39
    assert sum(tree.exits(at_full_level=True)) == 35 and sum(tree.exits(at_full_level=False)) == 55


@pytest.mark.parametrize(
    "sizes, counts", [((5, 3, 2), (34, 21, 14, 10)), ((5, 4, 0), (5, 5, 0, 1)), ((5, 0, 2), (3, 5, 2, 1))]
)
def test_trees_of_other_sizes(sizes, counts):
    tree = Tree(*sizes)
    assert (len(tree.nodes), len(tree.cells), len(tree.ups), len(tree.paths())) == counts


@pytest.mark.parametrize("kind", [Tree, Lattice])
def test_parents_come_first_and_names_say_what_was_done(kind):
    tree = kind(5, 3, 2)
    for i, node in enumerate(tree.nodes):
        assert (node.name.count("0"), node.name.count("1")) == (node.layer, node.level)
        for step in node.steps:
            source = tree.nodes[tree.index[step.source]]
            assert tree.index[step.source] < i
            assert (source.layer, source.level) == (node.layer - (not step.up), node.level - step.up)
    if kind is Tree:
        pairs = [(tree.nodes[p].name, node.name) for node, p in zip(tree.nodes, tree.parents, strict=True) if p >= 0]
        assert all(child[:-1] == parent for parent, child in pairs)
        assert [node.name for node in tree.nodes[:3]] == ["00", "000", "0000"]  # depth first, a cell before an up


def test_the_lattice_shares_what_is_equal():
    lattice = Lattice(5, 4, 2)
    assert (len(lattice.nodes), len(lattice.cells), len(lattice.ups), len(lattice.forks)) == (15, 13, 10, 8)
    assert len(lattice.paths()) == 15


def test_what_a_living_exit_hangs_on():
    tree = Tree(5, 4, 2)
    exits = [node.name in ("0010", "011") for node in tree.nodes]
    assert tree.alive(exits) == {"0", "00", "001", "0010", "01", "011"}
    lattice = Lattice(3, 2, 1)
    exits = [node.name == "0001" for node in lattice.nodes]
    assert lattice.alive(exits) == {"0", "00", "000", "01", "001", "0001"}
    assert lattice.alive(exits, {("0001", 1)}) == {"0", "00", "000", "0001"}


# The candidates


TABLES = {
    ("skip", "derived"): [
        [576, 768, 960, 1344, 1536],
        [768, 1024, 1280, 1792, 2048],
        [960, 1280, 1600, 2240, 2560],
        [1344, 1792, 2240, 3136, 3584],
        [1536, 2048, 2560, 3584, 4096],
    ],
    ("conv3x3", "derived"): [
        [5184, 6912, 8640, 12_096, 13_824],
        [6912, 9216, 11_520, 16_128, 18_432],
        [8640, 11_520, 14_400, 20_160, 23_040],
        [12_096, 16_128, 20_160, 28_224, 32_256],
        [13_824, 18_432, 23_040, 32_256, 36_864],
    ],
    ("residual", "derived"): [
        [10_368, 16_896, 24_000, 41_664, 52_224],
        [12_864, 18_432, 27_200, 46_144, 57_344],
        [14_784, 22_016, 28_800, 50_624, 62_464],
        [18_624, 27_136, 36_800, 56_448, 72_704],
        [20_544, 29_696, 40_000, 64_064, 73_728],
    ],
    ("dwsblock", "derived"): [
        [5472, 7008, 7968, 9888, 10_848],
        [9088, 9344, 11_648, 14_208, 15_488],
        [12_640, 14_240, 14_240, 19_040, 20_640],
        [21_280, 23_520, 25_760, 27_104, 32_480],
        [26_368, 28_928, 31_488, 36_608, 35_072],
    ],
    ("dwsblock", "supernet"): [
        [15_168, 17_408, 19_648, 24_128, 26_368],
        [17_408, 19_712, 22_016, 26_624, 28_928],
        [19_648, 22_016, 24_384, 29_120, 31_488],
        [24_128, 26_624, 29_120, 34_112, 36_608],
        [26_368, 28_928, 31_488, 36_608, 39_168],
    ],
}
TABLES |= {(name, "supernet"): TABLES[name, "derived"] for name in ("skip", "conv3x3")}
TABLES["residual", "supernet"] = [
    [diagonal if i == j else cost for j, cost in enumerate(row)]
    for i, (row, diagonal) in enumerate(
        zip(TABLES["residual", "derived"], (10_944, 19_456, 30_400, 59_584, 77_824), strict=True)
    )
]


@pytest.mark.parametrize("name, form", TABLES)
def test_candidates_of_all_widths_have_the_published_weights_and_multi_adds(name, form):
    shape = supernet_form(64) if form == "supernet" else DERIVED
    for (i, inputs), (o, outputs) in product(enumerate(WIDTHS), repeat=2):
        expected = TABLES[name, form][i][o]
        with torch.device("meta"):
            op = made(name, inputs, outputs, shape, 64)
            assert multi_adds(op, torch.zeros(1, inputs, 5, 7)) == 35 * expected
        assert count_parameters(op) == parameters_of(name, inputs, outputs, shape) == expected


def test_the_lookup_of_costs_is_the_derived_form():
    assert channels_of(64) == WIDTHS and list(CANDIDATES) == ["skip", "conv3x3", "residual", "dwsblock"]
    for name in CANDIDATES:
        assert costs_of(name, 64, "madds") == costs_of(name, 64, "params") == TABLES[name, "derived"]
    assert channels_of(8) == [3, 4, 5, 7, 8] and channels_of(32) == [12, 16, 20, 28, 32]


@pytest.mark.parametrize("name", CANDIDATES)
def test_slices_of_a_superkernel_are_the_narrower_operation(name):
    whole, x = made(name, 8, 8, supernet_form(8), 8).double(), torch.randn(2, 8, 5, 4, dtype=torch.float64)
    for inputs, outputs in product(channels_of(8), repeat=2):
        narrow = made(name, inputs, outputs, supernet_form(8), 8).double()
        slices = narrowed(name, whole, inputs, outputs)
        narrow.load_state_dict(whole.state_dict() | slices)
        y = torch.func.functional_call(whole, slices, x[:, :inputs])
        assert y.shape[1] == outputs and bool(slices) == (inputs < 8 or outputs < 8)
        torch.testing.assert_close(y, narrow(x[:, :inputs]), rtol=1e-12, atol=1e-12)


def by_definition(name, op, x, outputs):
    """A candidate from the specification, of the first channels of the weights of ``op``."""
    weights, i = list(op.parameters()), x.shape[1]
    if name in ("skip", "conv3x3"):
        return F.conv2d(x, weights[0][:outputs, :i], padding=int(name == "conv3x3")).relu()
    shortcut = F.conv2d(x, weights[-1][:outputs, :i])
    if name == "residual":
        y = F.conv2d(x, weights[0][:outputs, :i], padding=1).relu()
        return (F.conv2d(y, weights[1][:outputs, :outputs], padding=1) + shortcut).relu()
    y = F.conv2d(x, weights[0][:, :i]).relu()
    y = F.conv2d(y, weights[1], padding=1, groups=len(weights[1])).relu()
    return (F.conv2d(y, weights[2][:outputs]) + shortcut).relu()


@pytest.mark.parametrize("name", CANDIDATES)
def test_candidates_are_what_the_specification_says(name):
    op = made(name, 8, 8, supernet_form(8), 8).double()
    x = torch.randn(2, 5, 6, 7, dtype=torch.float64)
    y = torch.func.functional_call(op, narrowed(name, op, 5, 3), x)
    torch.testing.assert_close(y, by_definition(name, op, x, 3))
    derived = made(name, 5, 5, DERIVED, 8)
    assert name not in ("residual", "dwsblock") or type(derived.shortcut) is nn.Identity


# Counts


def weights_of(net):
    return sum(p.numel() for p in net.parameters() if p.dim() == 4)


@pytest.mark.parametrize(
    "variant, tail, weights, ends, all_biases",
    [("A", 1728, 28_382_336, 28_382_403, 28_383_683), ("B", 27_648, 28_408_256, 28_408_368, 28_409_648)],
)
def test_the_supernet_has_the_published_weights(variant, tail, weights, ends, all_biases):
    with torch.device("meta"):
        net = Supernet.__new__(Supernet)
        Supernet.__init__(net, SupernetConfig(variant=variant))
    cell = net.cells["0"]
    assert [count_parameters(op) for op in cell.positions[0].ops] == [4096, 36_864, 77_824, 39_168]
    assert count_parameters(cell.positions[0]) == 157_952 and count_parameters(cell) == 789_760
    assert count_parameters(net.cells) == 27_641_600 and weights_of(net.ups) == 737_280
    assert net.frame.head.weight.numel() == 1728 and net.frame.tail.weight.numel() == tail
    assert weights_of(net) == weights
    assert weights + count_parameters(net.frame) - weights_of(net.frame) == ends
    assert sum(p.numel() for p in net.network_parameters()) == all_biases
    assert (net.alpha.numel(), net.ratio.numel(), net.gamma.numel()) == (700, 700, 55)
    assert net.gamma.shape == (55,)


@pytest.mark.parametrize("variant, cost", [("A", 297_876_416), ("B", 28_408_256)])
def test_and_all_its_branches_the_published_multi_adds(variant, cost):
    net = Supernet(SupernetConfig(variant=variant), PlainMixedOp)
    assert multi_adds(net, torch.zeros(1, 3, 4, 4)) == 16 * cost


def test_the_published_network_has_the_published_counts():
    net = DerivedNetwork(B1, NetworkConfig())
    assert [count_parameters(cell) for cell in net.steps] == [67_648, 59_104, 77_952]
    ops = [[count_parameters(op) for op in cell.operations] for cell in net.steps]
    assert ops == [
        [28_928, 1024, 9088, 7968, 20_640],
        [26_368, 1344, 12_096, 5472, 13_824],
        [73_728, 1536, 576, 576, 1536],
    ]
    assert weights_of(net) == 234_080 and count_parameters(net) == 234_192
    with torch.device("meta"):
        net = DerivedNetwork(B1, NetworkConfig())
        assert multi_adds(net, torch.zeros(1, 3, 256, 256)) == 15_340_666_880 == 234_080 * 256**2
        as_searched = DerivedNetwork(B1, NetworkConfig(form="supernet"))
    assert count_parameters(as_searched.steps) == 249_344


def uniform(path, variant, operation, width):
    cells = path.count("0")
    return Genotype(path, [[operation] * 5] * cells, [[width] * 4] * cells, variant)


@pytest.mark.parametrize(
    "variant, path, weights, cost",
    [
        ("A", "000101", 77_184, 50_243_567_616),
        ("A", "0000011", 77_184, 50_243_567_616),
        ("B", "000001", 66_240, 4_341_104_640),
        ("B", "0011", 103_104, 6_757_023_744),
    ],
)
def test_what_is_fixed_of_the_published_paths(variant, path, weights, cost):
    genotype = uniform(path, variant, "skip", 0)
    with torch.device("meta"):
        net = DerivedNetwork(genotype, NetworkConfig())
        whole = multi_adds(net, torch.zeros(1, 3, 256, 256))
    cells = path.count("0")
    levels = [path[:i].count("1") for i, step in enumerate(path) if step == "0"]
    sides = [4**level if variant == "A" else 1 for level in levels]
    assert weights_of(net) - 4800 * cells == weights
    assert whole - 4800 * 256**2 * sum(sides) == cost


def test_the_smallest_and_the_largest_cell():
    for operation, width, count in (("skip", 0, 4800), ("residual", 4, 368_640)):
        assert count_parameters(DerivedNetwork(uniform("0", "B", operation, width), NetworkConfig()).steps) == count


# The supernet


CONFIGS = {
    "B": {},
    "A": {"variant": "A"},
    "A at x3": {"variant": "A", "scale": 3, "ups": 1},
    "A at x2": {"variant": "A", "scale": 2, "ups": 1, "width_weights": "softmax"},
    "lattice": {"lattice": True, "scale": 2},
    "lattice A": {"lattice": True, "variant": "A"},
    "gumbel": {"width_weights": "gumbel", "scale": 3, "ups": 1},
    "sorted": {"exit_weights": "sorted", "ups": 1, "output": "added"},
    "softmax": {"exit_weights": "softmax", "operation_weights": "softmax", "width_weights": "softmax", "ups": 1},
    "mixed": {"exit_weights": "softmax", "operation_weights": "sparsemax", "output": "plain", "ups": 1},
}


def supernet(config="B", radius=0.0, mixed_op=MixedOp, spread=1.0, **settings):
    """Undecided, with logits that leave some of each kind alive."""
    torch.manual_seed(0)
    sizes = {"width": 8, "cells": 3, "searched": 2} | CONFIGS[config] | settings
    net = Supernet(SupernetConfig(**sizes), mixed_op).double()
    with torch.no_grad():
        for logits in net.architecture_parameters():
            logits.copy_(spread * torch.randn(logits.shape, dtype=torch.float64))
        for parameter in net.network_parameters():
            parameter.mul_(2.0)  # or nothing would be left after so many cells
    net.radius = radius
    return net


def images(seed=0, sides=(6, 5)):
    return torch.rand(2, 3, *sides, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def output_and_gradients(net, x, support=None, forward=None):
    net.zero_grad()
    y = (forward or net)(x, support)
    (y * torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))).sum().backward()
    return y.detach(), {name: p.grad for name, p in net.named_parameters()}


def assert_same(found, expected):
    torch.testing.assert_close(found[0], expected[0], rtol=1e-10, atol=1e-10)
    for name, gradient in found[1].items():
        other = expected[1][name]
        assert gradient is not None or name.endswith("window"), name
        if gradient is None:
            continue
        other = torch.zeros_like(gradient) if other is None else other
        torch.testing.assert_close(gradient, other, rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


def everything(net, x, support):
    """The supernet from its definition, with nothing left out: every node, every candidate, every channel."""
    config, tree = net.config, net.tree
    kinds = {"softmax": lambda z: z.softmax(-1), "sparsemax": lambda z: sparsestmax(z, 0.0)}
    kinds["sparsestmax"] = lambda z: sparsestmax(z, net.radius)
    kinds["sorted"] = lambda z: sorted_sparsestmax(z, tree.parents, net.radius)
    gamma = net.gamma.masked_fill(~net.exits, -torch.inf)
    exits, alpha = kinds[config.exit_weights](gamma), kinds[config.operation_weights](net.alpha)
    routes = None if net.routes is None else sparsestmax(net.routes, max(0.0, 2 * net.radius - 1))
    ratio = net._drawn(support.seed) if config.width_weights == "gumbel" else kinds[config.width_weights](net.ratio)
    channels = channels_of(config.width)

    def mixed(position, x, weights, widths):
        share = torch.zeros(config.width, dtype=x.dtype)
        for width, count in zip(widths, channels, strict=True):
            share = share + width * (torch.arange(config.width) < count)
        by_channel = share.view(-1, 1, 1)
        y = 0.0
        for weight, name, op in zip(weights, config.candidates, position.ops, strict=True):
            if name == "residual":
                hidden = by_channel * F.conv2d(x, op.body[0].weight, padding=1).relu()
                z = (F.conv2d(hidden, op.body[2].weight, padding=1) + F.conv2d(x, op.shortcut.weight)).relu()
            else:
                z = by_definition(name, op, x, config.width)
            y = y + weight * z
        return by_channel * y

    def cell(name, x):
        i, y = list(net.cells).index(name), x
        full = torch.tensor([0.0] * 4 + [1.0], dtype=x.dtype)
        for p, position in enumerate(net.cells[name].positions):
            widths = ratio[i, p] if p < 4 else full
            if config.width_weights == "gumbel":  # the result times both of the scores that were drawn, which are 1
                y = mixed(position, y, alpha[i, p], widths.detach())
                y = y * torch.stack([ratio[i, q].max() for q in (p - 1, p) if 0 <= q < 4]).prod()
            else:
                y = mixed(position, y, alpha[i, p], widths)
        return x + 0.2 * y

    def up(module, x):
        if config.variant == "B":
            return F.conv2d(x, module.weight, module.bias, padding=1)
        factor = 3 if config.scale == 3 else 2
        x = x.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
        return F.leaky_relu(F.conv2d(x, module[1].weight, module[1].bias, padding=1), 0.2)

    y = F.conv2d(x, net.frame.head.weight, net.frame.head.bias, padding=1)
    for name in tree.stem:
        y = cell(name, y)
    held, total = {}, 0.0
    for i, node in enumerate(tree.nodes):
        parts = []
        for step in node.steps:
            source = held[step.source]
            parts.append(up(net.ups[step.module], source) if step.up else cell(step.module, source))
        if len(parts) > 1:
            row = routes[[fork.name for fork in tree.forks].index(node.name)]
            parts = [weight * part for weight, part in zip(row, parts, strict=True)]
        held[node.name] = sum(parts) if parts else y
        if net.exits[i]:
            total = total + exits[i] * held[node.name]
    y = F.conv2d(total, net.frame.tail.weight, net.frame.tail.bias, padding=1)
    if config.variant == "B":
        y = F.pixel_shuffle(y, config.scale)
    if config.output == "tanh":
        return (y.tanh() + 1) / 2
    if config.output == "added":
        return y + F.interpolate(x, scale_factor=config.scale, mode="bicubic", align_corners=False)
    return y


@pytest.mark.parametrize("radius", [0.0, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("config", CONFIGS)
def test_a_step_with_supports_is_that_of_everything_computed(config, radius):
    net, x = supernet(config, radius, spread=0.4), images()
    support = net.support()
    found = output_and_gradients(net, x, support)
    expected = output_and_gradients(net, x, support, lambda x, support: everything(net, x, support))
    assert_same(found, expected)
    if config in ("A", "B") and radius == 0.5:
        assert 1 < sum(support.exits) < sum(net.exits) and not all(all(row) for row in support.decided)
    if radius == 1.0 and net.config.exit_weights == "sparsestmax":
        assert len(net.running(support)[0]) <= net.config.cells


@pytest.mark.parametrize("radius", [0.0, 0.6])
@pytest.mark.parametrize("config", ["A", "B", "lattice", "gumbel"])
def test_the_supernet_in_plain_pytorch_is_the_same(config, radius):
    net, plain, x = supernet(config, radius), supernet(config, radius, PlainMixedOp), images()
    assert net.state_dict().keys() == plain.state_dict().keys()
    support = net.support()
    assert_same(output_and_gradients(net, x, support), output_and_gradients(plain, x, support))


def test_what_does_not_run_is_not_run_at_all():
    net, x = supernet("A", 1.0), images()
    support, ran = net.support(), set()
    for name, module in [*net.cells.items(), *net.ups.items()]:
        module.register_forward_hook(lambda *_, name=name: ran.add(name))
    net(x, support)
    (end,) = [node.name for node, alive in zip(net.tree.nodes, support.exits, strict=True) if alive]
    assert ran == {end[: i + 1] for i in range(len(end))}
    cells, ups = net.running(support)
    assert {*cells, *ups} == ran and net.sparsity()["live_cells"] == len(cells) / len(net.cells)


def test_one_step_of_an_optimiser_is_the_same_with_gradients_of_zero():
    net, x = supernet("B", 1.0), images()
    support = net.support()
    net(x, support).sum().backward()
    dead = {*net.cells} - {*net.running(support)[0]}
    assert dead and all(p.grad is not None and not p.grad.any() for name in dead for p in net.cells[name].parameters())
    assert all(logits.grad is not None for logits in net.architecture_parameters())


def test_frozen_parameters_get_no_gradients():
    net, x = supernet("B", 0.6), images()
    for frozen, learning in (
        (net.network_parameters(), net.architecture_parameters()),
        (net.architecture_parameters(), net.network_parameters()),
    ):
        net.zero_grad()
        for p in frozen:
            p.requires_grad_(False)
        net(x).sum().backward()
        assert all(p.grad is None for p in frozen) and all(p.grad is not None for p in learning)
        for p in frozen:
            p.requires_grad_(True)


def test_shares_of_channels_have_the_right_gradients_and_hold_one_tensor():
    y = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    factors = torch.tensor([1.0, 0.3, 1e-3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(_Scaled.apply, (y, factors))


@pytest.mark.parametrize("variant", ["A", "B"])
def test_it_holds_the_inputs_of_mixed_operations_only(variant):
    held = {}
    x = torch.rand(2, 3, 32, 32)
    for mixed_op in (MixedOp, PlainMixedOp):
        net = Supernet(SupernetConfig(width=16, variant=variant, scale=4, cells=2, searched=1), mixed_op)
        with LiveMemory() as memory:
            y = net(x, net.support())
        held[mixed_op] = memory.held()
        y.sum().backward()
    assert held[MixedOp] < held[PlainMixedOp] / 6


def test_memory_falls_with_the_share_alive():
    net, x, held = supernet("B", scale=2, spread=0.02), images(sides=(24, 24)), []
    for radius in (0.0, 0.5, 0.8, 1.0):
        net.radius = radius
        with LiveMemory() as memory:
            y = net(x, net.support())
        held.append(memory.held())
        del y
    assert held[0] > held[1] > held[2] >= held[3] and held[3] < held[0] / 3


# Gumbel


def test_draws_of_widths_are_hard_and_repeat_by_their_seed():
    net, x = supernet("gumbel"), images()
    supports = [net.support() for _ in range(4)]
    assert len({str(support.widths) for support in supports}) > 1
    assert len({support.seed for support in supports}) == 4
    assert all(width in channels_of(8) for support in supports for row in support.widths for width in row)
    assert torch.equal(net(x, supports[0]), net(x, supports[0]))
    net.eval()
    likeliest = net.ratio.argmax(-1)
    assert net.support().widths == [[channels_of(8)[k] for k in row] for row in likeliest.tolist()]
    assert net.support().seed is None
    state = torch.get_rng_state()
    net.train().sparsity(), net.genotype(), net.architecture_weights(), net.cost()
    assert torch.equal(state, torch.get_rng_state())


def test_widths_are_drawn_by_their_softmax():
    net = Supernet(SupernetConfig(width=8, cells=1, searched=0, ups=0, width_weights="gumbel"))
    with torch.no_grad():
        net.ratio.copy_(torch.tensor([0.1, 0.2, 0.4, 0.25, 0.05]).log().expand_as(net.ratio))
    torch.manual_seed(0)
    drawn = torch.tensor([net.support().widths[0] for _ in range(500)]).flatten()
    shares = [(drawn == width).float().mean().item() for width in channels_of(8)]
    assert shares == pytest.approx([0.1, 0.2, 0.4, 0.25, 0.05], abs=0.03)


# Deriving, and weights carried over


@pytest.mark.parametrize("config", [name for name in CONFIGS if name not in ("softmax", "mixed", "A at x2", "sorted")])
def test_the_derived_network_goes_on_with_the_supernet_s_weights(config):
    for seed in range(3):
        net = supernet(config, 1.0).eval()
        with torch.no_grad():
            net.gamma.copy_(torch.randn(net.gamma.shape, generator=torch.Generator().manual_seed(seed)))
        derived, x = inherit(net), images(seed)
        assert derived.genotype == net.genotype() and not derived.training
        torch.testing.assert_close(derived(x), net(x), rtol=1e-12, atol=1e-12)
        assert derived.config.form == "supernet" and derived.scale == net.config.scale
        own_weights = {p.data_ptr() for p in derived.parameters()} & {p.data_ptr() for p in net.parameters()}
        assert not own_weights


def decided(net, genotype):
    """Logits that say the genotype with certainty."""
    names = net.config.candidates
    with torch.no_grad():
        net.gamma.fill_(-9.0)[net.tree.index[genotype.path]] = 9.0
        cells = [genotype.path[: i + 1] for i, step in enumerate(genotype.path) if step == "0"]
        for k, name in enumerate(cells):
            row = list(net.cells).index(name)
            net.alpha[row] = 9.0 * torch.eye(len(names))[[names.index(o) for o in genotype.operations[k]]]
            net.ratio[row] = 9.0 * torch.eye(5)[list(genotype.widths[k])]
    net.radius = 1.0
    return net


@pytest.mark.parametrize("variant", ["A", "B"])
def test_any_genotype_of_the_space_can_be_said_and_is_inherited(variant):
    net, x = supernet(variant, cells=4, searched=3), images()
    for seed in range(8):
        genotype = random_genotype(net.tree, variant, seed)
        assert decided(net, genotype).genotype() == genotype
        torch.testing.assert_close(inherit(net, genotype)(x), net(x), rtol=1e-12, atol=1e-12)


def test_inherited_networks_are_those_of_the_supernet():
    net = supernet("B", ups=1)
    for genotype in (
        uniform("0000", "B", "skip", 0),
        uniform("0011", "B", "skip", 0),
        uniform("00", "A", "skip", 0),
    ):
        with pytest.raises(InputError, match="is none of this supernet"):
            inherit(net, genotype)
    with pytest.raises(InputError, match="is none of this supernet"):
        inherit(supernet("A"), uniform("001", "A", "skip", 0))  # it does not end at the full level
    with pytest.raises(InputError, match="is none of this supernet"):
        inherit(supernet("B", candidates=["skip"]), uniform("00", "B", "residual", 0))


def test_the_logits_tell_equal_sparse_weights_apart():
    net = decided(supernet("B"), uniform("000", "B", "dwsblock", 2))
    with torch.no_grad():
        net.alpha[list(net.cells).index("000"), 4] = torch.tensor([1.0, 3.0, 2.0, 9.0])
    net.radius = 0.0
    assert net.genotype() == uniform("000", "B", "dwsblock", 2)


def test_sorted_exits_are_a_prefix_and_the_farthest_one_is_derived():
    net = supernet("sorted", 0.3, spread=2.0)
    exits = net.support().exits
    for i, parent in enumerate(net.tree.parents):
        assert not exits[i] or parent < 0 or exits[parent]
    alive = [node.name for node, lives in zip(net.tree.nodes, exits, strict=True) if lives]
    assert len(alive) > 1 and len(net.genotype().path) == max(map(len, alive))


def test_routes_stay_undecided_while_the_radius_is_below_a_half():
    net = supernet("lattice", 0.5, spread=0.02)
    assert all(map(all, net.support().routes))
    net.radius = torch.tensor(0.5, dtype=torch.float64)  # as a CUDA graph reads it
    assert all(map(all, net.support().routes))
    net.radius = 1.0
    assert all(sum(row) == 1 for row in net.support().routes)


# Costs and the order term


@pytest.mark.parametrize("by", ["params", "madds"])
@pytest.mark.parametrize("config", ["A", "B", "A at x3"])
def test_the_expected_cost_of_a_decided_network_is_what_it_costs(config, by):
    net = supernet(config)
    for seed in range(5):
        genotype = random_genotype(net.tree, net.config.variant, seed)
        cost = decided(net, genotype).cost(by).item() * net.largest_cost(by)
        derived = DerivedNetwork(genotype, NetworkConfig(net.config.width, net.config.scale))
        counted = count_parameters(derived) if by == "params" else multi_adds(derived, torch.zeros(1, 3, 4, 5)) / 20
        assert by == "params" or counted == cost_of(genotype, net.config)
        assert cost == pytest.approx(counted, rel=1e-9) and counted <= net.largest_cost(by)


def cost_of(genotype, config):
    """Multi-Adds for a pixel of the derived network, from the tables."""
    pixels, cell, total = 1, 0, 9 * 3 * config.width * (1 + config.scale**2)
    for step in genotype.path:
        if step == "1":
            pixels *= (3 if config.scale == 3 else 2) ** 2 if config.variant == "A" else 1
            total += pixels * 9 * config.width**2
        else:
            ends = genotype.channels(cell, config.width)
            names = genotype.operations[cell]
            total += pixels * sum(parameters_of(name, *pair) for name, pair in zip(names, ends, strict=True))
            cell += 1
    return total


@pytest.mark.parametrize("config", ["A", "B", "lattice", "gumbel"])
def test_the_expected_cost_is_the_mean_over_draws(config):
    net = supernet(config)
    weights, _ = net._weights()
    generator, costs = torch.Generator().manual_seed(0), []
    names = list(net.cells)
    for _ in range(1000):
        node, path, cells = net.tree.nodes[int(torch.multinomial(weights.exits, 1, generator=generator))], "", []
        while node.steps:
            i = 0
            if len(node.steps) > 1:
                row = [fork.name for fork in net.tree.forks].index(node.name)
                i = int(torch.multinomial(weights.routes[row], 1, generator=generator))
            step = node.steps[i]
            path, cells = f"{int(step.up)}{path}", cells if step.up else [step.module, *cells]
            node = net.tree.nodes[net.tree.index[step.source]]
        rows = [names.index(name) for name in [*net.tree.stem, *cells]]
        drawn = [
            [torch.multinomial(rows, 1, generator=generator)[:, 0].tolist() for rows in table[rows]]
            for table in (weights.operations, weights.widths)
        ]
        operations = [[net.config.candidates[k] for k in row] for row in drawn[0]]
        costs.append(cost_of(Genotype(net.tree.stem[-1] + path, operations, drawn[1], net.config.variant), net.config))
    mean, deviation = torch.tensor(costs).double().mean().item(), torch.tensor(costs).double().std().item()
    assert net.cost().item() * net.largest_cost() == pytest.approx(mean, abs=3 * deviation / 1000**0.5)


def test_costs_have_gradients_for_all_three_levels_and_prefer_the_cheap():
    net = supernet("B", exit_weights="softmax", operation_weights="softmax", width_weights="softmax")
    net.cost("params").backward()
    gradients = [logits.grad for logits in net.architecture_parameters()]
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    assert (net.alpha.grad[0, :, 0] < 0).all() and (net.ratio.grad[0, :, 0] < 0).all()
    assert net.gamma.grad[0] < 0 < net.gamma.grad.max()
    with pytest.raises(InputError, match="give params or madds"):
        net.cost("time")


def test_the_hinge_is_the_penalty_of_the_tree_and_the_published_term_telescopes():
    assert supernet("B").penalty() is None
    net = supernet("B", order=0.5)
    weights, _ = net._weights()
    torch.testing.assert_close(net.penalty(), 0.5 * order_penalty(weights.exits, net.tree.parents))
    net = supernet("B", order=0.5, order_by="telescoping")
    summed = sum(
        net.gamma[net.tree.index[b]] - net.gamma[net.tree.index[a]]
        for path in net.tree.paths()
        for a, b in zip(path, path[1:], strict=False)
    )
    torch.testing.assert_close(net.penalty(), 0.5 * summed)
    net.penalty().backward()
    assert net.gamma.grad.unique().tolist() == [-0.5 * len(net.tree.paths()), 0.0, 0.5]


def test_in_variant_a_only_exits_are_compared():
    net = supernet("A", order=1.0)
    weights, _ = net._weights()
    index = net.tree.index
    expected = 0.0
    for name, i in index.items():
        if net.exits[i] and net.exits[index.get(name[:-1], i)]:
            expected = expected + F.relu(weights.exits[i] - weights.exits[index[name[:-1]]])
    torch.testing.assert_close(net.penalty(), expected)


# Derived networks


@pytest.mark.parametrize("size", [(1, 1), (5, 7)])
@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("variant", ["A", "B"])
def test_output_shapes_at_odd_sizes(variant, scale, size):
    ups = {2: 1, 3: 1, 4: 2}[scale]
    net = Supernet(SupernetConfig(8, 2, 1, ups, scale, variant))
    x = torch.rand(2, 3, *size)
    assert net(x).shape == (2, 3, scale * size[0], scale * size[1])
    assert net(x).min() > 0 and net(x).max() < 1
    derived = DerivedNetwork(net.genotype(), NetworkConfig(8, scale))
    assert derived(x, (0, 0, 600, 600)).shape == (2, 3, scale * size[0], scale * size[1])


def test_added_networks_start_as_the_image_enlarged():
    x = torch.rand(1, 3, 6, 7)
    large = F.interpolate(x, scale_factor=3, mode="bicubic", align_corners=False)
    assert torch.equal(DerivedNetwork(B1, NetworkConfig(8, 3, output="added"))(x), large)
    assert torch.equal(Supernet(SupernetConfig(8, 2, 1, scale=3, output="added"))(x), large)


RADII = [("B", "000", 4), ("B", "0011", 4), ("A", "000101", 4), ("A", "0000011", 4), ("A", "010", 3), ("A", "001", 2)]


@pytest.mark.parametrize("variant, path, scale", RADII)
@pytest.mark.parametrize("operation", ["conv3x3", "residual", "dwsblock", "skip"])
def test_the_radius_is_exact_and_tiles_show_no_seams(variant, path, scale, operation):
    torch.manual_seed(0)
    cells = path.count("0")
    operations = [[operation, "skip", "skip", operation, "skip"]] * cells
    genotype = Genotype(path, operations, [[4, 0, 1, 2]] * cells, variant)
    net = DerivedNetwork(genotype, NetworkConfig(8, scale, "plain")).double()
    for parameter in net.parameters():
        parameter.data = parameter.data.abs()  # so that no path is blocked
    middle, radius = 45, net.radius
    x = torch.rand(1, 3, 2 * middle + 1, 1, dtype=torch.float64, requires_grad=True)
    rows = net(x)[..., scale * middle : scale * (middle + 1), :]
    (gradient,) = torch.autograd.grad(rows.sum(), x)
    reached = gradient.abs().sum((0, 1, 3)).nonzero().flatten()
    assert max(middle - reached.min().item(), reached.max().item() - middle) == radius
    assert net.reach == 3 * radius
    image = torch.rand(1, 3, 2 * net.reach + 40, 9, dtype=torch.float64)
    tiles = upscale_in_tiles(net, image, scale, tile=net.reach + 20, overlap=net.reach)
    torch.testing.assert_close(tiles, net(image), rtol=1e-10, atol=1e-10)


def test_the_reach_stays_below_a_tile():
    assert DerivedNetwork(uniform("0" * 50, "B", "residual", 0), NetworkConfig(8)).reach == 240
    assert DerivedNetwork(uniform("0", "B", "skip", 0), NetworkConfig(8, output="added")).radius == 2


def test_variant_a_makes_its_scale_by_its_ups():
    for path, scale in (("001", 4), ("0011", 2), ("00", 3)):
        with pytest.raises(InputError, match=f"ups at x{scale}, but in variant A they enlarge"):
            DerivedNetwork(uniform(path, "A", "skip", 0), NetworkConfig(8, scale))
    with pytest.raises(InputError, match="2 ups at x2, but in variant A"):
        SupernetConfig(variant="A", scale=2)
    with pytest.raises(InputError, match=r"images of shape \(3, 4, 4\)"):
        DerivedNetwork(B1, NetworkConfig(8))(torch.rand(3, 4, 4))


def test_a_network_starts_from_one_of_another_scale():
    x2, x3 = (DerivedNetwork(B1, NetworkConfig(8, scale)) for scale in (2, 3))
    x3.start_from(x2)
    for name, value in x3.state_dict().items():
        assert torch.equal(value, x2.state_dict()[name]) == (not name.startswith("frame.tail")), name
    a2, a3 = (DerivedNetwork(uniform("001", "A", "skip", 1), NetworkConfig(8, scale)) for scale in (2, 3))
    a3.start_from(a2)
    assert all(torch.equal(value, a2.state_dict()[name]) for name, value in a3.state_dict().items())
    for other in (
        DerivedNetwork(B1, NetworkConfig(16)),
        DerivedNetwork(B1, NetworkConfig(8, form="supernet")),
        DerivedNetwork(uniform("000", "B", "skip", 1), NetworkConfig(8)),
    ):
        with pytest.raises(InputError, match="cannot start from"):
            other.start_from(x2)


# Genotypes


def test_genotype_round_trip_text_and_picture(tmp_path):
    find_space("trilevel-x4").save_genotype(B1, tmp_path / "genotype.json")
    data = json.loads((tmp_path / "genotype.json").read_text())
    assert data["space"] == "trilevel-x4" and Genotype.from_dict(data) == B1
    assert hash(Genotype.from_dict(data)) == hash(B1)
    a1 = Genotype("000101", B1.operations + B1.operations[:1], B1.widths + B1.widths[:1], "A")
    (_, path), *cells = a1.graph()
    assert [target for _, target, _ in path] == ["cell 1", "cell 2", "cell 3", "up 1", "cell 4", "up 2", "pixels"]
    assert len(cells) == a1.cells == 4
    assert ("in", "1: 4/8", "dwsblock") in cells[0][1] and ("in", "out", "") in cells[0][1]
    draw_architecture(a1.graph(), tmp_path / "a1.png")
    assert (tmp_path / "a1.png").stat().st_size > 5000


GOOD = json.loads(json.dumps(asdict(B1)))


@pytest.mark.parametrize(
    "data, message",
    [
        (GOOD | {"path": "0001000"}, "its 6 cells need 5 each"),
        (GOOD | {"path": "100"}, "path is '100'; give 0 for each cell"),
        (GOOD | {"path": "0020"}, "path is '0020'"),
        (GOOD | {"path": ""}, "path is ''"),
        (GOOD | {"path": 0}, "path is 0"),
        (GOOD | {"operations": GOOD["operations"][:2]}, "operations are"),
        (GOOD | {"operations": [row[:4] for row in GOOD["operations"]]}, "need 5 each"),
        (GOOD | {"operations": "abc"}, "operations are 'abc'"),
        (GOOD | {"operations": [["warp"] * 5] * 3}, "unknown candidate operation 'warp'"),
        (GOOD | {"operations": [[["skip"]] * 5] * 3}, "unknown candidate operation"),
        (GOOD | {"widths": [[0] * 5] * 3}, "widths are.*need 4 each"),
        (GOOD | {"widths": [[0, 1, 2, 5]] * 3}, r"widths \[0, 1, 2, 5\] in a cell; give numbers 0 to 4"),
        (GOOD | {"widths": [[0, 1, 2, True]] * 3}, "give numbers 0 to 4"),
        (GOOD | {"widths": [[0, 1, 2, 3.0]] * 3}, "give numbers 0 to 4"),
        (GOOD | {"variant": "C"}, "variant is 'C'; known: A, B"),
        ({"path": "000"}, "no TrilevelNAS genotype"),
        ([1, 2], "no TrilevelNAS genotype"),
    ],
)
def test_foreign_genotypes_are_refused(data, message):
    with pytest.raises(InputError, match=message):
        Genotype.from_dict(data)


@pytest.mark.parametrize("variant", ["A", "B"])
@pytest.mark.parametrize("tree", [Tree(5, 4, 2), Lattice(5, 4, 2)])
def test_random_genotypes_are_legal_and_differ(tree, variant):
    drawn = [random_genotype(tree, variant, seed) for seed in range(60)]
    assert len({str(genotype) for genotype in drawn}) == 60
    assert {name for g in drawn for row in g.operations for name in row} == {*CANDIDATES}
    assert {width for g in drawn for row in g.widths for width in row} == {0, 1, 2, 3, 4}
    assert {g.path.count("1") for g in drawn} == ({2} if variant == "A" else {0, 1, 2})
    assert all(1 <= g.cells <= 5 for g in drawn)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"width": 12}, "supernet.width is 12; give a multiple of 8"),
        ({"width": 0}, "supernet.width"),
        ({"searched": 5}, "supernet.searched is 5 of 5 cells"),
        ({"scale": 5}, "supernet.scale is 5; known: 2, 3, 4"),
        ({"variant": "C"}, "supernet.variant"),
        ({"output": "relu"}, "supernet.output"),
        ({"order": -1.0}, "supernet.order"),
        ({"order_by": "size"}, "supernet.order_by is 'size'; known: hinge, telescoping"),
        ({"exit_weights": "gumbel"}, "exit_weights is 'gumbel'; known: softmax, sparsemax, sparsestmax, sorted"),
        ({"operation_weights": "sorted"}, "operation_weights"),
        ({"width_weights": "entmax"}, "width_weights"),
        ({"exit_weights": "sorted", "variant": "A"}, "exit_weights is sorted"),
        ({"exit_weights": "sorted", "lattice": True}, "exit_weights is sorted"),
        ({"candidates": []}, "supernet.candidates"),
        ({"candidates": ["conv7x7"]}, "unknown candidate operation 'conv7x7'"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        SupernetConfig(**settings)


@pytest.mark.parametrize("settings", [{"width": 12}, {"scale": 1}, {"output": "relu"}, {"form": "plain"}])
def test_bad_networks_are_named(settings):
    (name,) = settings
    with pytest.raises(InputError, match=f"network.{name}"):
        NetworkConfig(**settings)


# Candidates that the user names

OPS = """
from torch import nn

class Twice(nn.Sequential):
    def __init__(self, channels):
        super().__init__(*[nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()) for _ in range(2)])
"""


@pytest.fixture
def ops(tmp_path, monkeypatch):
    monkeypatch.setattr(own, "_LOADED", {})
    (tmp_path / "my_ops.py").write_text(OPS)
    return f"{tmp_path}/my_ops.py"


@pytest.mark.parametrize("radius", [0.0, 0.6, 1.0])
def test_candidates_of_one_s_own_are_searched_derived_and_inherited(ops, radius):
    candidates = ["skip", "residual", f"{ops}:Twice"]
    net, x = supernet("B", radius, candidates=candidates), images()
    plain = supernet("B", radius, PlainMixedOp, candidates=candidates)
    assert_same(*(output_and_gradients(n, x, net.support()) for n in (net, plain)))
    decided(net, uniform("001", "B", "skip", 1))
    with torch.no_grad():
        net.alpha[list(net.cells).index("00"), 2] = torch.tensor([0.0, 0.0, 9.0])
    genotype = net.genotype()
    assert genotype.operations[1] == ("skip", "skip", "my_ops.py:Twice", "skip", "skip")
    assert Genotype.from_dict(json.loads(json.dumps(asdict(genotype)))) == genotype
    derived = inherit(net)
    torch.testing.assert_close(derived(x), net(x), rtol=1e-12, atol=1e-12)
    twice = 2 * (9 * 64 + 8)
    assert count_parameters(derived.steps[1].operations[2]) == twice
    assert costs_of("my_ops.py:Twice", 8, "params")[0][3] == twice
    counted = DerivedNetwork(genotype, NetworkConfig(8))
    assert net.cost("params").item() * net.largest_cost("params") == pytest.approx(count_parameters(counted))
    drawn = find_space("trilevel-x2").random_genotype(net.config, 0)
    assert {name for row in drawn.operations for name in row} <= {"skip", "residual", "my_ops.py:Twice"}


def test_a_genotype_s_candidates_run_no_file(ops):
    with pytest.raises(InputError, match="my_ops.py:Twice is code of somebody's own"):
        Genotype.from_dict(GOOD | {"operations": [["my_ops.py:Twice"] * 5] * 3})


# The space


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
def test_presets_are_of_settings_that_exist_and_of_the_scale(space):
    groups = {"supernet": SupernetConfig, "network": NetworkConfig, "complexity": ComplexityConfig}
    groups |= {"data": space.data, "loss": space.loss, "search": BilevelConfig, "train": TrainConfig}
    assert space.search_presets.keys() == space.train_presets.keys() == {"paper", "demo", "smoke"}
    for presets, size in ((space.search_presets, "supernet"), (space.train_presets, "network")):
        for preset in presets.values():
            made = {name: groups[name](**settings) for name, settings in preset.items()}
            assert made[size].scale == int(space.name[-1])
            space.task(made["data"], made[size])
            if "search" in made:
                assert made["search"].validate_from == made["search"].epochs
    paper = space.search_preset("paper")
    assert SupernetConfig(**paper["supernet"]) == replace(SupernetConfig(), scale=int(space.name[-1]))
    schedule = BilevelConfig(**paper["search"])
    assert [schedule.rate(epoch) for epoch in (0, 49, 50, 100, 150)] == [2e-4, 2e-4, 1e-4, 5e-5, 2.5e-5]


@pytest.mark.parametrize("config", CONFIGS)
def test_every_kind_of_supernet_can_be_searched_in(config):
    sizes = {"width": 8, "cells": 2, "searched": 1} | CONFIGS[config]
    space = find_space(f"trilevel-x{sizes.get('scale', 4)}")
    check_space(space, SupernetConfig(**sizes), differentiable)


def test_a_space_with_an_expected_cost_that_is_no_number_is_refused():
    space = replace(find_space("trilevel-x4"), expected_cost=lambda net, by: net.gamma)
    with pytest.raises(InputError, match=r"expected_cost\(supernet, 'params'\) makes \(9,\); it should make a tensor"):
        check_space(space, SupernetConfig(8, 2, 1), differentiable)


def test_the_search_s_loss_of_the_architecture_holds_both_terms():
    net = supernet("B", order=0.5)
    problem = SimpleNamespace(space=find_space("trilevel-x4"), supernet=net, config=net.config)
    both = _penalty(problem, ComplexityConfig("madds", 2.0))
    torch.testing.assert_close(both(), net.penalty() + 2.0 * net.cost("madds"))
    torch.testing.assert_close(_penalty(problem, ComplexityConfig("madds", 0.0))(), net.penalty())
    problem.supernet = supernet("B")
    assert _penalty(problem, None) is None and _penalty(problem, ComplexityConfig("madds", 0.0)) is None


@pytest.mark.slow
@pytest.mark.parametrize("by", ["params", "madds"])
def test_a_larger_coefficient_ends_in_a_cheaper_network(by, tmp_path):
    costs = []
    for coefficient in (0.0, 1e5):
        out = tmp_path / str(coefficient)
        search_images(
            "trilevel-x4",
            preset="smoke",
            search=BilevelConfig(
                optimizer="adam",
                learning_rate=1e-3,
                architecture_learning_rate=0.05,
                architecture_weight_decay=0.0,
                epochs=4,
                warmup_epochs=1,
                steps=3,
                validate_from=4,
            ),
            complexity=ComplexityConfig(by, coefficient),
            run=RunConfig(out=str(out)),
        )
        genotype = Genotype.from_dict(json.loads((out / "genotype.json").read_text()))
        costs.append(multi_adds(DerivedNetwork(genotype, NetworkConfig(8)), torch.zeros(1, 3, 8, 8)))
    assert costs[1] < 0.8 * costs[0] and genotype == uniform("0", "B", "skip", 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant, path, scale", [("A", "001", 2), ("A", "010", 3), ("A", "01010", 4), ("B", "0001", 3)]
)
def test_onnx_of_any_size(variant, path, scale, tmp_path):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    runtime = pytest.importorskip("onnxruntime")
    from safetensors.torch import save_file

    from srnas_fast.train import export
    from srnas_fast.train.load import NETWORK

    torch.manual_seed(0)
    cells = path.count("0")
    genotype = Genotype(path, [[*CANDIDATES, "skip"]] * cells, [[0, 1, 4, 2]] * cells, variant)
    net = DerivedNetwork(genotype, NetworkConfig(8, scale)).eval()
    config = {"genotype": json.dumps(asdict(genotype)), "network": json.dumps(asdict(net.config))}
    config |= {"format": NETWORK, "space": f"trilevel-x{scale}"}
    save_file(net.state_dict(), tmp_path / "net.safetensors", config)
    export(tmp_path / "net.safetensors", tmp_path / "net.onnx")
    session = runtime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    x = torch.rand(1, 3, 7, 12)
    (found,) = session.run(["restored"], {"image": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), net(x), rtol=0, atol=1e-5)
