"""The HiNAS spaces: denoising against the numbers of its published modules, and what both tasks have in common."""

import json
from dataclasses import asdict

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from srnas_fast.errors import InputError
from srnas_fast.mixed import MixedOp, PlainMixedOp
from srnas_fast.mixed.layers import Sine
from srnas_fast.simplex import sparsestmax
from srnas_fast.spaces.hinas import DENOISING
from srnas_fast.spaces.hinas.genotype import (
    Genotype,
    _tell_of_stem1,
    derive_cell,
    derive_path,
    edges_of,
    random_genotype,
)
from srnas_fast.spaces.hinas.network import DerivedNetwork, NetworkConfig
from srnas_fast.spaces.hinas.operations import CANDIDATES
from srnas_fast.spaces.hinas.supernet import Supernet, SupernetConfig
from srnas_fast.spaces.reach import reach

SMALL = SupernetConfig(filters=4, layers=2, nodes=2)
CELL_A = [("con_c_3x3", 0), ("sep_c_3x3", 1)] * 4
CELL_B = [
    *[("sep_c_5x5", 0), ("dil_c_3x3", 1), ("skip_connect", 2), ("sep_c_3x3", 0)],
    *[("dil_c_5x5", 3), ("con_c_3x3", 1), ("sep_c_3x3", 4), ("skip_connect", 0)],
]


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_paper_supernet_has_the_published_shape():
    net = Supernet(SupernetConfig())
    assert net.alpha.shape == (3, 14, 7) and net.beta.shape == (6, 3)
    assert sum(isinstance(m, MixedOp) for m in net.modules()) == 112
    assert sum(p.numel() for p in net.network_parameters()) == 1_475_357
    assert sum(p.numel() for p in net.architecture_parameters()) == 312
    assert [count(net.stem1), count(net.stem2), count(net.reduce1)] == [576, 23_040, 5_760]
    assert [count(net.upsamplers[w]) for w in ("1", "2")] == [150, 300]
    assert [count(r) for layer in net.routers for r in layer.values()] == [1000, 1000, 2700, 1000, 2700, 2800]
    assert [[count(cell) for cell in layer] for layer in net.cells] == [
        [75_320, 162_330],
        [75_320, 162_330, 282_240],
        [75_320, 162_330, 282_240],
    ]
    assert count(net.pyramids) + count(net.head) == 156_901


def test_illegal_moves_start_at_minus_fifty_and_weigh_nothing():
    net = Supernet(SupernetConfig())
    illegal = [[1, 0, 0], [1, 0, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 1]]
    assert net.beta.tolist() == [[-50.0 if i else 1.0 for i in row] for row in illegal]
    weights = net.architecture_weights()["beta"][1]
    assert torch.equal(weights == 0, torch.tensor(illegal, dtype=torch.bool))
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(6))


@pytest.mark.parametrize("activation", ["leaky", "relu", "prelu", "sine"])
def test_candidates_keep_shape_and_have_their_reach(activation):
    for name, make in CANDIDATES.items():
        op = make(4, activation, True).eval()
        x = torch.zeros(1, 4, 15, 15)
        a = op(x).clone()
        x[0, :, 7, 7] = 1
        touched = (op(x) - a).abs().sum((0, 1)).nonzero()
        assert a.shape == x.shape
        assert name == "none" or (touched - 7).abs().max() == reach(op)


def test_published_count_of_a_mixed_operation():
    op = MixedOp([make(10, "leaky", False) for make in CANDIDATES.values()])
    assert count(op) == 47 * 100 + 68 * 10


def test_sine_enters_a_separable_candidate_once():
    op = CANDIDATES["sep_c_3x3"](4, "sine", False)
    assert sum(isinstance(m, Sine) for m in op.modules()) == 1


@pytest.mark.parametrize(
    "cell, path, pyramid, parameters, multi_adds, skip",
    [
        (CELL_A, [0, 0, 0], False, 209_569, 844_431_360, None),
        (CELL_A, [0, 0, 0], True, 309_489, 1_247_543_296, None),
        (CELL_B, [0, 1, 2], False, 319_069, 1_102_970_880, 0),
        (CELL_B, [0, 1, 2], True, 452_349, 1_640_759_296, 0),
        (CELL_B, [1, 2, 2], False, 387_549, 1_570_406_400, None),
        (CELL_B, [0, 1, 0], False, 243_869, 985_497_600, None),
    ],
)
def test_derived_networks_have_the_published_counts(cell, path, pyramid, parameters, multi_adds, skip):
    net = DerivedNetwork(Genotype([cell] * 3, path), NetworkConfig(pyramid=pyramid)).eval()
    assert count(net) == parameters
    assert net.skip_from == skip
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        net(torch.rand(1, 1, 64, 64))
    assert flops.get_total_flops() // 2 == multi_adds


def test_plain_and_recomputing_supernet_agree_on_every_gradient():
    nets = []
    for mixed_op in (PlainMixedOp, MixedOp):
        torch.manual_seed(0)
        nets.append(Supernet(SMALL, mixed_op).double())
    x = torch.rand(2, 1, 9, 11, dtype=torch.float64)
    for net in nets:
        with torch.no_grad():
            net.alpha.copy_(torch.linspace(-1, 1, net.alpha.numel()).view_as(net.alpha))
        (net(x) - x).square().mean().backward()
    for (name, a), b in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, msg=lambda text, name=name: f"{name}: {text}")
    for a, b in zip(nets[0].buffers(), nets[1].buffers(), strict=True):
        torch.testing.assert_close(a, b)


def sparse(weights, radius, mixed_op=MixedOp, layers=3):
    """A supernet of undecided edges and of moves that, as the radius grows, keep to the narrowest width."""
    torch.manual_seed(0)
    net = Supernet(SupernetConfig(filters=2, layers=layers, nodes=2, weights=weights), mixed_op).double()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for logits, scale in ((net.alpha, 0.15), (net.beta, 0.1)):
            logits += scale * torch.randn(logits.shape, generator=random, dtype=torch.float64)
        net.beta[:, 1] += 0.2
    net.radius = radius
    return net


class RunsAll(PlainMixedOp):
    def forward(self, x, weights, support=None):
        return super().forward(x, weights)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "weights, radius", [("sparsemax", 1.0), ("sparsestmax", 0.0), ("sparsestmax", 0.6), ("sparsestmax", 1.0)]
)
def test_what_weighs_nothing_need_not_run(weights, radius, training):
    net, everything = (
        sparse(weights, radius).train(training),
        sparse(weights, radius, RunsAll).train(training),
    )
    everything._weights = lambda look: (*Supernet._weights(everything)[:2], None)  # routers, too
    live = net.sparsity()["live"]
    assert live == pytest.approx((15 + 6) / (7 * 15 + 14)) if radius == 1 and weights == "sparsestmax" else live > 0.25
    x = torch.rand(2, 1, 9, 11, dtype=torch.float64)
    results = []
    for each in (everything, net):
        y = each(x)
        (y - x).square().mean().backward()
        results.append([y, *(p.grad for p in each.parameters())])
    names = ["y", *(name for name, _ in net.named_parameters())]
    for name, expected, got in zip(names, *results, strict=True):
        torch.testing.assert_close(got, expected, msg=lambda text, name=name: f"{name}: {text}")


def test_dead_candidates_and_routers_do_not_run_and_get_exact_zeros():
    net = sparse("sparsestmax", 1.0)
    called = []
    for layer, routers in enumerate(net.routers):
        for h, steps in routers.items():
            for g, router in steps.items():
                router.register_forward_hook(lambda *_, key=(layer, int(h), int(g)): called.append(key))
    before = {name: value.clone() for name, value in net.named_buffers()}
    net(torch.rand(2, 1, 9, 11, dtype=torch.float64)).sum().backward()
    assert called == [(layer, h, h) for layer in range(3) for h in range(min(3, layer + 1))]
    alpha, _, support = net._weights()
    assert (alpha.amax(-1) == 1).all()
    for layer, cells in enumerate(net.cells):
        for edge, chosen in enumerate(alpha[layer].argmax(-1).tolist()):
            for k, op in enumerate(cells[0].edges[edge].ops):
                assert all((p.grad == 0).all() for p in op.parameters()) or k == chosen
    dead = [f"routers.{layer}.{h}.{h + 1}" for layer, h in ((0, 0), (1, 0), (1, 1))]
    assert all((net.get_parameter(f"{name}.0.weight").grad == 0).all() for name in dead)
    moved = {name for name, value in net.named_buffers() if not torch.equal(value, before[name])}
    assert not any(name.startswith(tuple(dead)) for name in moved) and "routers.2.0.0.1.running_var" in moved


@pytest.mark.parametrize("weights, transfers", [("softmax", 0), ("sparsemax", 1), ("sparsestmax", 1)])
def test_all_supports_come_in_one_transfer(weights, transfers, monkeypatch):
    net, calls = sparse(weights, 0.4), []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: calls.append(self.shape) or tolist(self))
    net(torch.rand(1, 1, 8, 8, dtype=torch.float64))
    assert calls == [(3 * 5 + 6, 7)] * transfers


@pytest.mark.parametrize("weights", ["softmax", "sparsemax", "sparsestmax"])
def test_with_its_support_given_it_looks_at_no_weight(weights, monkeypatch):
    net, x = sparse(weights, 0.4), torch.rand(1, 1, 8, 8, dtype=torch.float64)
    net.eval()
    expected, support = net(x), net.support()
    monkeypatch.setattr(torch.Tensor, "tolist", None)
    net.radius = torch.tensor(0.4, dtype=torch.float64)
    assert torch.equal(net(x, support=support), expected)
    assert (support is None) == (weights == "softmax")


def test_a_frozen_sparse_supernet_and_its_gradients():
    net = sparse("sparsestmax", 0.6)
    for p in net.network_parameters():
        p.requires_grad_(False)
    net(torch.rand(2, 1, 9, 11, dtype=torch.float64)).sum().backward()
    assert all(p.grad is None for p in net.network_parameters()) and (net.alpha.grad != 0).any()
    alpha, beta, _ = net._weights()
    assert (net.alpha.grad[alpha == 0] == 0).all() and (net.beta.grad[beta == 0] == 0).all()


def test_sparse_weights_of_one_call_are_those_of_each_group():
    net = sparse("sparsestmax", 0.5)
    alpha, beta, support = net._weights()
    assert torch.equal(alpha, sparsestmax(net.alpha, 0.5))
    for row, legal, weights in zip(net.beta, net.legal, beta, strict=True):
        torch.testing.assert_close(weights[legal], sparsestmax(row[legal], 0.5))  # the row's own number of choices
        assert (weights[~legal] == 0).all()
    assert support[:15] == (alpha > 0).flatten(0, 1).tolist()
    groups = net.architecture_weights()
    assert torch.equal(groups["alpha, layer 2"][1], alpha[1]) and torch.equal(groups["beta"][1], beta)
    assert net.sparsity()["radius"] == 0.5 and "radius" not in sparse("sparsemax", 0.5).sparsity()


def test_the_logits_tell_equal_sparse_weights_apart():
    net = sparse("sparsestmax", 1.0, layers=1)
    columns = list(CANDIDATES)
    with torch.no_grad():
        net.alpha.zero_()
        net.alpha[:, :, columns.index("none")] = 2.0  # one-hot everywhere
        for edge, name in enumerate(["sep_c_3x3", "dil_c_5x5", "con_c_3x3", "sep_c_5x5", "skip_connect"]):
            net.alpha[0, edge, columns.index(name)] = 1.0 + 0.1 * edge
    assert net.genotype().cells == [[("dil_c_5x5", 1), ("sep_c_3x3", 0), ("skip_connect", 2), ("sep_c_5x5", 1)]]


def test_cell_derivation_by_hand():
    # One node of two inputs, then one of three: the second drops its weakest input; `none` never wins.
    columns = list(CANDIDATES)
    weights = torch.full((5, 7), 0.01)
    weights[0, columns.index("none")] = 0.9
    weights[0, columns.index("skip_connect")] = 0.05
    weights[1, columns.index("sep_c_5x5")] = 0.3
    weights[2, columns.index("dil_c_3x3")] = 0.2  # prev-prev -> node 2: dropped
    weights[3, columns.index("dil_c_5x5")] = 0.5
    weights[4, columns.index("con_c_3x3")] = 0.4
    assert derive_cell(weights, nodes=2) == [  # of each node the heavier first
        ("sep_c_5x5", 1),
        ("skip_connect", 0),
        ("dil_c_5x5", 1),
        ("con_c_3x3", 2),
    ]


def test_of_equal_inputs_and_operations_the_first_wins():
    columns = list(CANDIDATES)
    weights = torch.full((5, 7), 0.1)
    weights[2:, [columns.index("dil_c_3x3"), columns.index("skip_connect")]] = 0.2
    weights[4, columns.index("sep_c_3x3")] = 0.2
    assert derive_cell(weights, nodes=2) == [
        *[("con_c_3x3", 0), ("con_c_3x3", 1)],
        *[("dil_c_3x3", 0), ("dil_c_3x3", 1)],
    ]
    weights[4, columns.index("sep_c_3x3")] = 0.3  # a late one that is better comes first
    assert derive_cell(weights, nodes=2)[2:] == [("sep_c_3x3", 2), ("dil_c_3x3", 0)]


def test_of_equal_paths_the_first_wins():
    half = {0: {0: 0.5, 1: 0.5}}
    assert derive_path([half]) == [0]  # of equal ends the narrowest
    # Both ways into width 1 weigh the same: the one from width 0 was found first.
    assert derive_path([half, {0: {0: 0.1, 1: 0.4}, 1: {0: 0.1, 1: 0.4, 2: 0.1}}]) == [0, 1]
    # Width 0 is best reached from width 1, and as likely an end as width 2.
    assert derive_path([half, {0: {0: 0.1, 1: 0.2}, 1: {0: 0.4, 1: 0.1, 2: 0.4}}]) == [1, 0]
    # Three ways into width 1 of layer 3, of which all but the first come later.
    third = {0: {0: 0.1, 1: 0.5}, 1: {0: 0.1, 1: 0.5, 2: 0.1}, 2: {1: 0.5, 2: 0.1}}
    assert derive_path([half, {0: {0: 0.5, 1: 0.5}, 1: {0: 0.5, 1: 0.5, 2: 0.5}}, third]) == [0, 0, 1]


def test_uniform_weights_derive_the_published_default():
    genotype = Supernet(SupernetConfig()).genotype()
    assert genotype.cells[0] == [("con_c_3x3", 0), ("con_c_3x3", 1)] * 4
    assert genotype.path == [0, 0, 0]


@pytest.mark.parametrize("seed", range(5))
def test_viterbi_finds_what_enumeration_finds(seed):
    generator = torch.Generator().manual_seed(seed)
    rows, widths = [], 1
    for _ in range(4):
        here = min(3, widths + 1)
        rows.append(
            {
                h: {g: torch.rand((), generator=generator).item() for g in (h - 1, h, h + 1) if 0 <= g < here}
                for h in range(widths)
            }
        )
        widths = here
    paths = [(1.0, [])]
    for layer in rows:
        paths = [(score * w, [*path, g]) for score, path in paths for g, w in layer[path[-1] if path else 0].items()]
    assert derive_path(rows) == max(paths)[1]


def test_supernet_follows_its_path():
    net = Supernet(SMALL)
    with torch.no_grad():
        net.beta[0] = torch.tensor([-50.0, 0.0, 3.0])  # stem -> x1.5
        net.beta[2] = torch.tensor([0.0, 0.0, 3.0])  # x1.5 -> x2
    assert net.genotype().path == [1, 2]


@pytest.mark.parametrize("reads", ["stem1", "stem2"])
def test_layer_2_reads_stem2_as_published(reads):
    """The two wirings differ in no count: what each scaler is given tells them apart."""
    net = DerivedNetwork(Genotype([CELL_B] * 3, [0, 1, 2], layer2_reads=reads), NetworkConfig(filters=4))
    made, given = {}, []
    for name in ("stem1", "stem2", "cells.0", "cells.1"):
        net.get_submodule(name).register_forward_hook(lambda _, __, y, name=name: made.__setitem__(name, y))
    for pair in net.scalers:
        for scaler in pair:
            scaler.register_forward_pre_hook(lambda _, x: given.append(x[0]))
    net(torch.rand(1, 1, 8, 8))
    names = ["stem1", "stem2", reads, "cells.0", "cells.0", "cells.1"]
    assert all(x is made[name] for x, name in zip(given, names, strict=True))


@pytest.mark.parametrize("reads, radius", [("stem1", 4), ("stem2", 5)])
def test_the_receptive_field_knows_the_wiring(reads, radius):
    far = [("skip_connect", 0), ("skip_connect", 0)]
    net = DerivedNetwork(Genotype([far, far], [1, 0], layer2_reads=reads), NetworkConfig(filters=4)).eval()
    net.skip_from, net.reduce = 1, None  # all that comes late is layer 2, which sees a stem and the head
    torch.nn.init.normal_(net.head[-1].weight)
    size = 2 * radius + 9
    x = torch.rand(1, 1, size, size, requires_grad=True)
    net(x)[0, 0, size // 2, size // 2].backward()
    touched = (x.grad[0, 0] != 0).nonzero() - size // 2
    assert touched.abs().max() == radius == net.radius


def test_a_genotype_from_before_keeps_its_wiring_and_says_so_once(capsys):
    old = {"space": "hinas-denoise", "cells": [CELL_A, CELL_A], "path": [0, 0], "activation": "leaky"}
    _tell_of_stem1.cache_clear()
    assert Genotype.from_dict(old).layer2_reads == Genotype.from_dict(old).layer2_reads == "stem1"
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and '"layer2_reads": "stem2"' in told
    assert Genotype.from_dict(old | {"layer2_reads": "stem2"}) == Genotype([CELL_A, CELL_A], [0, 0])
    assert Genotype.from_dict(old | {"layer2_reads": "stem1"}).layer2_reads == "stem1"
    _tell_of_stem1.cache_clear()
    Genotype.from_dict(old | {"layer2_reads": "stem1"})
    assert not capsys.readouterr().err


def test_receptive_field_is_exact_enough_for_tiles():
    torch.manual_seed(0)
    for genotype in (Genotype([CELL_B] * 3, [0, 1, 2]), random_genotype(2, 2, seed=3)):
        net = DerivedNetwork(genotype, NetworkConfig(filters=4)).eval()
        torch.nn.init.normal_(net.head[-1].weight)  # zero at first: the network starts as the identity
        size = 2 * net.reach + 9
        x = torch.rand(1, 1, size, size, requires_grad=True)
        net(x)[0, 0, size // 2, size // 2].backward()
        touched = (x.grad[0, 0] != 0).nonzero() - size // 2
        assert touched.abs().max() <= net.reach
        assert touched.abs().max() >= net.reach - 4  # no wasteful overlap either


def test_genotype_round_trip_and_text(tmp_path):
    genotype = Genotype([CELL_B] * 3, [0, 1, 2])
    DENOISING.save_genotype(genotype, tmp_path / "genotype.json")
    data = json.loads((tmp_path / "genotype.json").read_text())
    assert data["space"] == "hinas-denoise" and data["layer2_reads"] == "stem2"
    assert Genotype.from_dict(data) == genotype
    assert str(genotype).startswith("x1 [sep5(0) dil3(1) skip(2) sep3(0)")
    title, edges = genotype.graph()[1]
    assert title == "layer 2, width x1.5"
    assert edges[2] == ("node 1", "node 2", "skip_connect") and ("node 4", "out", "") in edges


@pytest.mark.parametrize(
    "data, message",
    [
        ({"cells": [CELL_A]}, "path"),
        ({"cells": [CELL_A], "path": [2]}, "not possible"),
        ({"cells": [CELL_A], "path": [0, 0]}, "one per layer"),
        ({"cells": [[("warp", 0), ("skip_connect", 1)]], "path": [0]}, "warp"),
        ({"cells": [[("none", 0), ("skip_connect", 1)]], "path": [0]}, "none"),
        ({"cells": [[("skip_connect", 2), ("skip_connect", 1)]], "path": [0]}, "below 2"),
        ({"cells": [CELL_A[:3]], "path": [0]}, "3 edges"),
        ({"cells": [CELL_A], "path": [0], "activation": "gelu"}, "gelu"),
        ({"cells": [CELL_A], "path": [0], "layer2_reads": "stem3"}, "layer2_reads is 'stem3'"),
        ({"cells": [[("ops.py:Unheard", 0), ("skip_connect", 1)]], "path": [0]}, "--code ops.py"),
        ({"cells": [CELL_A], "path": [float("inf")]}, "no HiNAS genotype"),
        ([1, 2], "no HiNAS genotype"),
    ],
)
def test_foreign_genotypes_are_refused(data, message):
    with pytest.raises(InputError, match=message):
        Genotype.from_dict(data)


def test_random_genotypes_are_legal_and_differ():
    drawn = [random_genotype(3, 4, seed=seed) for seed in range(20)]
    assert len({str(g) for g in drawn}) == 20
    assert {len(g.cells[0]) for g in drawn} == {2 * 4}
    assert len(edges_of(4)) == 14


@pytest.mark.parametrize(
    "field, value",
    [
        *[("filters", 1), ("layers", 0), ("nodes", 0), ("activation", "tanh"), ("weights", "entmax")],
        *[("candidates", []), ("candidates", ["none"]), ("candidates", ["skip_connect"] * 2), ("candidates", ["warp"])],
    ],
)
def test_bad_sizes_are_named(field, value):
    with pytest.raises(InputError, match=field):
        SupernetConfig(**{field: value})


OWN = """
import torch


class Block(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(channels, channels, 3, padding=1), torch.nn.BatchNorm2d(channels)

    def forward(self, x):
        return self.norm(self.conv(x)).sigmoid()


class Narrow(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = torch.nn.Conv2d(channels, channels, 3)

    def forward(self, x):
        return self.conv(x)


class Odd(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        if channels > 4:
            raise ValueError("no more than 4")

    def forward(self, x):
        return x + 1


class InPlace(torch.nn.ReLU):
    def __init__(self, channels):
        super().__init__(inplace=True)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A file of the user's own candidates, forgotten after the test."""
    monkeypatch.setattr("srnas_fast.spaces.own._LOADED", {})
    path = tmp_path / "ops.py"
    path.write_text(OWN)
    return path


def test_candidates_of_ones_own(own):
    config = SupernetConfig(filters=4, layers=2, nodes=1, candidates=["none", f"{own}:Block", "skip_connect"])
    net = Supernet(config)
    assert net.alpha.shape == (2, 2, 3) and net(torch.rand(2, 1, 9, 11)).shape == (2, 1, 9, 11)
    labels, _ = net.architecture_weights()["alpha, layer 1"]
    assert labels == ["none", "ops.py:Block", "skip_connect"]  # without the folder
    with torch.no_grad():
        net.alpha[..., 0] = 9
    genotype = net.genotype()
    assert genotype.cells == [[("ops.py:Block", 0), ("ops.py:Block", 1)]] * 2
    assert str(genotype) == "x1 [Block(0) Block(1)] x1 [Block(0) Block(1)]"
    assert Genotype.from_dict(json.loads(json.dumps(asdict(genotype)))) == genotype
    derived = DerivedNetwork(genotype, NetworkConfig(filters=8))
    assert type(derived.cells[0].ops[0]).__name__ == "Block" and derived.cells[0].ops[0].conv.in_channels == 8
    assert derived.cells[0].reach(0, 0) == 1
    drawn = {
        operation
        for seed in range(9)
        for cell in DENOISING.random_genotype(config, seed).cells
        for operation, _ in cell
    }
    assert drawn == {"ops.py:Block", "skip_connect"}


def test_a_candidate_of_ones_own_learns_as_in_plain_pytorch(own):
    config, nets = SupernetConfig(filters=4, layers=1, nodes=1, candidates=["con_c_3x3", f"{own}:Block"]), []
    x = torch.rand(2, 1, 9, 11, dtype=torch.float64)
    for mixed_op in (PlainMixedOp, MixedOp):
        torch.manual_seed(0)
        nets.append(Supernet(config, mixed_op).double())
        nets[-1](x).square().sum().backward()
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad)


def test_bad_candidates_of_ones_own_are_named(own):
    with pytest.raises(InputError, match=r"ops.py:Narrow makes \(1, 4, 6, 6\) of \(1, 4, 8, 8\)"):
        Supernet(SupernetConfig(filters=4, candidates=["con_c_3x3", f"{own}:Narrow"]))
    with pytest.raises(InputError, match="no more than 4"):
        Supernet(SupernetConfig(filters=4, candidates=["con_c_3x3", f"{own}:Odd"]))  # of the second width
    SupernetConfig(candidates=[f"{own}:InPlace"])  # which runs the file
    in_place = Genotype([[("ops.py:InPlace", 0), ("skip_connect", 0)]], [0])
    with pytest.raises(InputError, match="ops.py:InPlace changes its input in place, which other edges read, too"):
        DerivedNetwork(in_place, NetworkConfig(filters=4))
    with pytest.raises(InputError, match="twice"):
        SupernetConfig(candidates=[f"{own}:Block", f"{own.parent}/../{own.parent.name}/ops.py:Block"])
    with pytest.raises(InputError, match="'Blok'"):
        SupernetConfig(candidates=[f"{own}:Blok"])


def test_running_statistics_move_once_a_step():
    nets = []
    for held in (True, False):
        torch.manual_seed(0)
        nets.append(Supernet(SMALL, PlainMixedOp).double())
        x = torch.rand(2, 1, 9, 11, dtype=torch.float64)
        with pytest.MonkeyPatch.context() as patch:
            if held:
                patch.setattr("srnas_fast.spaces.hinas.supernet.recomputed", lambda module, x: module(x))
            nets[-1](x).square().sum().backward()
    state = nets[0].state_dict()
    for name, value in nets[1].state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0)
    assert state["pyramids.0.dilated.0.1.num_batches_tracked"] == state["head.1.num_batches_tracked"] == 1
    for (name, a), b in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, msg=lambda text, name=name: f"{name}: {text}")
