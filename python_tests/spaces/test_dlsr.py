"""The DLSR space against the numbers of its published modules, and of its published weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage.io import imread

from srnas_fast.errors import InputError
from srnas_fast.metrics import LiveMemory, count_parameters, multi_adds, psnr, ssim
from srnas_fast.mixed import MixedOp, PlainMixedOp
from srnas_fast.simplex import sparsestmax
from srnas_fast.spaces import find_space, own
from srnas_fast.spaces.dlsr import (
    BETA21,
    BETA_PARA1,
    DerivedNetwork,
    Genotype,
    NetworkConfig,
    Supernet,
    SupernetConfig,
    load_published,
    random_genotype,
)
from srnas_fast.spaces.dlsr.genotype import derive
from srnas_fast.spaces.dlsr.layers import Join
from srnas_fast.spaces.dlsr.operations import CANDIDATES
from srnas_fast.spaces.dlsr.presets import SEARCH_PRESETS, TRAIN_PRESETS
from srnas_fast.spaces.dlsr.published import _published_name

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
TINY18 = SHARED / "dlsr" / "RFDN_beta21_tiny18_ps128_20210306_lr4_700.pt"
needs_weights = pytest.mark.skipif(not TINY18.exists(), reason=f"the published weights are not at {TINY18}")
needs_set5 = pytest.mark.skipif(not (SHARED / "Set5").exists(), reason=f"Set5 is not below {SHARED}")


# The candidates and the counts


def test_candidates_have_the_published_names_order_and_weights():
    weights = {name: count_parameters(make(48)) for name, make in CANDIDATES.items()}
    assert list(weights.items()) == [
        ("conv_1x1", 2304),
        ("conv_3x3", 20736),
        ("conv_5x5", 57600),
        ("conv_7x7", 112896),
        ("sep_conv_3x3", 5472),
        ("sep_conv_5x5", 7008),
        ("sep_conv_7x7", 9312),
        ("dil_conv_3x3", 2736),
        ("dil_conv_5x5", 3504),
    ]


@pytest.mark.parametrize(
    "name, reach", [(name, int(name[-1]) // 2 * (2 if name[:3] in ("sep", "dil") else 1)) for name in CANDIDATES]
)
def test_candidates_keep_shape_and_look_as_far_as_their_name_says(name, reach):
    op, x = CANDIDATES[name](5), torch.zeros(1, 5, 15, 17)
    for weight in op.parameters():
        torch.nn.init.ones_(weight)
    x[0, :, 7, 8] = 1
    seen = op(x)
    assert seen.shape == x.shape
    rows, columns = (seen != 0).any(1)[0].nonzero().T
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (7 - reach, 7 + reach, 8 - reach, 8 + reach)


def test_paper_supernet_has_the_published_size():
    net = Supernet(SupernetConfig())
    assert sum(p.numel() for p in net.network_parameters()) == 4_212_924
    assert net.alpha.shape == (3, 9) and net.legal.sum(1).tolist() == [2, 3, 4, 5]
    assert sum(isinstance(m, MixedOp) for m in net.modules()) == 18
    assert 0 < net.alpha.abs().max() < 0.01 and (net.beta[~net.legal] == 0).all() and (net.beta[net.legal] != 0).all()
    assert [tuple(rows.shape) for _, rows in net.architecture_weights().values()] == [(1, 9)] * 3 + [
        (1, inputs) for inputs in (2, 3, 4, 5)
    ]
    assert net.sparsity() == {}


@pytest.mark.parametrize(
    "genotype, width, scale, parameters, giga",
    [
        (BETA21, 48, 2, 322_620, 67.3),
        (BETA_PARA1, 48, 2, 327_804, 68.5),
        (BETA21, 18, 2, 56_268, 12.1),
        (BETA21, 48, 3, 329_115, 30.5),
        (BETA21, 48, 4, 338_208, 17.7),
    ],
)
def test_derived_networks_have_the_published_counts(genotype, width, scale, parameters, giga):
    net = DerivedNetwork(genotype, NetworkConfig(width, scale))
    assert count_parameters(net) == parameters
    x = torch.empty(1, 3, 720 // scale, 1280 // scale, device="meta")
    assert round(multi_adds(net.to("meta"), x) / 1e9, 1) == giga


# What is computed


def attention_by_definition(esa, x):
    c1 = esa.reduce(x)
    c = F.max_pool2d(F.conv2d(c1, esa.shrink.weight, esa.shrink.bias, stride=2), 7, 3)
    c = esa.pooled[2](esa.pooled[1](esa.pooled[0](c).relu()).relu())
    c = F.interpolate(c, x.shape[-2:], mode="bilinear", align_corners=False)
    return x * torch.sigmoid(esa.expand(c + esa.full(c1)))


def network_by_definition(net, x):
    """A derived network, from the specification: with concatenations, on the [0, 255] scale."""

    def act(t):
        return torch.where(t > 0, t, 0.05 * t)

    def conv1(join, tensors):
        return F.conv2d(torch.cat(tensors, 1), join.weight, join.bias)

    first = net.head.conv(x * 255)
    blocks = []
    for k, cell in enumerate(net.cells):
        r = first if k == 0 else blocks[0]
        if k > 1:
            a, b = net.genotype.inputs[k - 2]
            r = act(conv1(net.joins[k - 2], [blocks[a - 1], blocks[b - 1]]))
        kept = []
        for i in range(3):
            kept.append(act(cell.distil[i](r)))
            r = act(cell.operations[i](r) + r)
        blocks.append(attention_by_definition(cell.attention, conv1(cell.join, [*kept, act(cell.last(r))])))
    y = net.tail.upsample(net.tail.smooth(act(conv1(net.tail.join, blocks))) + first)
    return F.pixel_shuffle(y, net.scale) / 255


@pytest.mark.parametrize("scale, size", [(2, (15, 15)), (3, (16, 29)), (4, (47, 31))])
def test_the_derived_network_is_what_the_specification_says(scale, size):
    torch.manual_seed(0)
    genotype = Genotype(["dil_conv_5x5", "conv_3x3", "sep_conv_3x3"], [(2, 1), (1, 3), (4, 2)])
    net = DerivedNetwork(genotype, NetworkConfig(width=9, scale=scale)).double()
    x = torch.rand(2, 3, *size, dtype=torch.float64)
    y = net(x)
    assert y.shape == (2, 3, scale * size[0], scale * size[1])
    torch.testing.assert_close(y, network_by_definition(net, x))
    strange = x.to(memory_format=torch.channels_last).repeat(1, 1, 1, 2)[..., : size[1]]
    torch.testing.assert_close(net(strange), y)


@pytest.mark.parametrize("shape", [(1, 3, 14, 40), (1, 3, 40, 14), (1, 1, 20, 20), (3, 20, 20)])
def test_images_that_the_attention_cannot_pool_are_refused(shape):
    for net in (DerivedNetwork(BETA21, NetworkConfig(width=4)), Supernet(SupernetConfig(width=4, cells=3))):
        with pytest.raises(InputError, match="from 15 up"):
            net(torch.rand(shape))


def supernet(weights="softmax", radius=0.0, mixed_op=MixedOp, cells=4, scale=2):
    torch.manual_seed(0)
    net = Supernet(SupernetConfig(width=5, cells=cells, scale=scale, weights=weights), mixed_op).double()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for logits in (net.alpha, net.beta):
            logits += 0.15 * torch.randn(logits.shape, generator=random, dtype=torch.float64)
    net.radius = radius
    return net


def output_and_gradients(net, x):
    y = net(x)
    (y - 0.5).square().mean().backward()
    assert all(p.grad is not None for p in net.parameters())
    return {"y": y} | {name: p.grad for name, p in net.named_parameters()}


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("scale, layout", [(2, torch.contiguous_format), (3, torch.channels_last)])
def test_plain_and_recomputing_supernet_agree_on_every_gradient(scale, layout):
    x = torch.rand(2, 3, 17, 22, dtype=torch.float64).to(memory_format=layout)
    plain, ours = (output_and_gradients(supernet(mixed_op=m, scale=scale), x) for m in (PlainMixedOp, MixedOp))
    assert ours["y"].shape == (2, 3, 17 * scale, 22 * scale)
    assert_same(ours, plain)
    assert (ours["beta"][~supernet().legal] == 0).all() and (ours["beta"][0] != 0).any() and (ours["alpha"] != 0).all()


class RunsAll(PlainMixedOp):
    def forward(self, x, weights, support=None):
        return super().forward(x, weights)


@pytest.mark.parametrize(
    "weights, radius", [("sparsemax", 1.0), ("sparsestmax", 0.0), ("sparsestmax", 0.6), ("sparsestmax", 1.0)]
)
def test_what_weighs_nothing_need_not_run(weights, radius):
    net, everything = supernet(weights, radius, cells=5), supernet(weights, radius, RunsAll, cells=5)
    everything._weights = lambda look: (*Supernet._weights(everything)[:2], None)  # inputs, too
    live = net.sparsity()["live"]
    assert live == pytest.approx(6 / (27 + 9)) if (weights, radius) == ("sparsestmax", 1.0) else 6 / 36 < live <= 1
    x = torch.rand(2, 3, 16, 15, dtype=torch.float64)
    assert_same(output_and_gradients(net, x), output_and_gradients(everything, x))


def test_dead_candidates_and_inputs_get_exact_zeros():
    net = supernet("sparsestmax", 1.0)
    output_and_gradients(net, torch.rand(1, 3, 15, 15, dtype=torch.float64))
    alpha, beta, _ = net._weights()
    assert (alpha.amax(-1) == 1).all() and (beta.amax(-1) == 1).all()
    for cell in net.cells:
        for mixed, row in zip(cell.operations, alpha, strict=True):
            for op, weight in zip(mixed.ops, row, strict=True):
                assert all(bool((p.grad != 0).any()) == (weight == 1) for p in op.parameters())
    for join, row in zip(net.joins, beta, strict=True):
        for part, weight in zip(join.weight.grad.split(5, dim=1), row, strict=False):
            assert bool((part != 0).any()) == (weight == 1)


def test_a_dead_input_is_not_even_looked_at():
    join, x = Join([3, 2, 3], 4), torch.rand(1, 3, 5, 5)
    dead = torch.full((1, 2, 5, 5), torch.nan)
    y = join([x, dead, x], torch.tensor([0.25, 0.0, 0.75]), [True, False, True])
    part, _, other = join.weight.split([3, 2, 3], dim=1)
    torch.testing.assert_close(y, F.conv2d(x, 0.25 * part + 0.75 * other, join.bias))
    y = join([dead[:, :1].repeat(1, 3, 1, 1), dead, x], torch.tensor([0.0, 0.0, 1.0]), [False, False, True])
    torch.testing.assert_close(y, F.conv2d(x, other, join.bias))  # the bias, too, where the first one is dead


@pytest.mark.parametrize("weights, transfers", [("softmax", 0), ("sparsemax", 1), ("sparsestmax", 1)])
def test_all_supports_come_in_one_transfer(weights, transfers, monkeypatch):
    net, calls = supernet(weights, 0.4), []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: calls.append(self.shape) or tolist(self))
    net(torch.rand(1, 3, 15, 15, dtype=torch.float64))
    assert calls == [(3 + 2, 9)] * transfers


@pytest.mark.parametrize("weights", ["softmax", "sparsemax", "sparsestmax"])
def test_with_its_support_given_it_looks_at_no_weight(weights, monkeypatch):
    net, x = supernet(weights, 0.4), torch.rand(1, 3, 15, 15, dtype=torch.float64)
    expected, candidates, support = net(x), net.candidate_weights(), net.support()
    monkeypatch.setattr(torch.Tensor, "tolist", None)
    net.radius = torch.tensor(0.4, dtype=torch.float64)
    assert torch.equal(net(x, support=support), expected) and torch.equal(net.candidate_weights(), candidates)
    assert (support is None) == (weights == "softmax")


@pytest.mark.parametrize("cells", [3, 6, 12])
def test_sparse_weights_of_one_call_are_those_of_each_row(cells):
    torch.manual_seed(0)
    net = Supernet(SupernetConfig(width=4, cells=cells, weights="sparsestmax")).double()
    torch.nn.init.normal_(net.beta, std=0.3)  # what stands behind a row's inputs must not matter
    net.radius = 0.5
    alpha, beta, (operations, inputs) = net._weights()
    assert torch.equal(alpha, sparsestmax(net.alpha, 0.5))
    for row, legal, weights in zip(net.beta, net.legal, beta, strict=True):
        torch.testing.assert_close(weights[legal], sparsestmax(row[legal], 0.5))
        assert (weights[~legal] == 0).all()
    assert operations == (alpha > 0).tolist() and inputs == (beta > 0).tolist()
    assert net.sparsity()["radius"] == 0.5 and "radius" not in supernet("sparsemax").sparsity()


@pytest.mark.parametrize("mixed_op", [PlainMixedOp, MixedOp])
def test_a_decided_supernet_is_the_derived_network(mixed_op):
    # The supernet weighs the inputs of a cell and the derived network does not: its joins take the weights in. Two
    # inputs of equal weight, all the others of none, are what the wiring of both allows.
    genotype = Genotype(["sep_conv_3x3", "conv_5x5", "dil_conv_3x3"], [(1, 2), (1, 3), (2, 4)])
    net = supernet(mixed_op=mixed_op, cells=5)
    with torch.no_grad():
        net.alpha.fill_(-1e4)
        net.beta.fill_(-1e4)
        for row, name in enumerate(genotype.operations):
            net.alpha[row, list(CANDIDATES).index(name)] = 0
        for row, pair in enumerate(genotype.inputs):
            net.beta[row, [j - 1 for j in pair]] = 0
    assert net.genotype() == genotype
    derived = DerivedNetwork(genotype, NetworkConfig(width=5)).double()
    state = net.state_dict()
    taken = {}
    for name in derived.state_dict():
        place = name.split(".")
        if "operations" in place:
            place.insert(4, f"ops.{list(CANDIDATES).index(genotype.operations[int(place[3])])}")
        taken[name] = state[".".join(place)]
        if place[0] == "joins" and place[2] == "weight":
            parts = taken[name].split(5, dim=1)
            taken[name] = torch.cat([0.5 * parts[j - 1] for j in genotype.inputs[int(place[1])]], dim=1)
    derived.load_state_dict(taken)
    x = torch.rand(1, 3, 21, 18, dtype=torch.float64)
    torch.testing.assert_close(derived(x), net(x))


def test_the_supernet_keeps_an_eighth_of_what_plain_pytorch_keeps():
    held = []
    for mixed_op in (PlainMixedOp, MixedOp):
        torch.manual_seed(0)
        net, x = Supernet(SupernetConfig(width=24), mixed_op), torch.rand(1, 3, 32, 32)
        with LiveMemory() as memory:
            y = net(x)
            held.append(memory.held())
        del y
    assert 8 * held[1] < held[0]


def test_autocast_stays_close():
    torch.manual_seed(0)
    x = torch.rand(1, 3, 16, 18)
    for net in (Supernet(SupernetConfig(width=8)), DerivedNetwork(BETA21, NetworkConfig(width=8))):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            lowered = net(x).float()
        torch.testing.assert_close(lowered, net(x), atol=0.02 * net(x).abs().max().item(), rtol=0)


@pytest.mark.parametrize("place", [(3, 0, 40, 40), (-6, 0, 40, 40), (24, 0, 40, 40), (0, 24, 40, 40)])
def test_parts_off_the_grid_or_beyond_the_image_are_refused(place):
    net = DerivedNetwork(BETA21, NetworkConfig(width=4))
    with pytest.raises(InputError, match="give a part of the image that starts at multiples of 6 pixels"):
        net(torch.rand(1, 3, 20, 20), place)


def test_a_cell_s_output_is_held_no_longer_than_it_is_read():
    net = DerivedNetwork(BETA21, NetworkConfig(width=8)).eval()
    x = torch.rand(1, 3, 60, 70)
    with torch.no_grad(), LiveMemory() as memory:
        net(x)
    unit = 8 * 60 * 70 * 4
    assert memory.peak < 11.5 * unit  # 13.5 where all outputs are kept to the end


def test_parts_that_know_their_place_make_the_whole_image():
    torch.manual_seed(0)
    net = DerivedNetwork(BETA21, NetworkConfig(width=8, scale=3)).eval()
    for conv in (m for cell in net.cells for m in cell.attention.modules() if isinstance(m, torch.nn.Conv2d)):
        conv.weight.data *= 1.5  # so that it matters
    x, tile, worst = torch.rand(1, 3, 150, 251), 84, {"placed": 0.0, "off": 0.0}
    with torch.no_grad():
        whole = net(x)
        torch.testing.assert_close(net(x, (0, 0, 150, 251)), whole, atol=1e-5, rtol=0)
        for top in range(0, 150, tile):
            for left in range(0, 251, tile):
                above, before = max(0, top - net.reach), max(0, left - net.reach)
                part = x[..., above : top + tile + net.reach, before : left + tile + net.reach]
                kept = [slice(3 * (a - b), 3 * (a - b + tile)) for a, b in ((top, above), (left, before))]
                for name, place in (("placed", (above, before, 150, 251)), ("off", None)):
                    got = net(part, place)[..., kept[0], kept[1]]
                    error = got - whole[..., 3 * top : 3 * (top + tile), 3 * left : 3 * (left + tile)]
                    worst[name] = max(worst[name], error.abs().max().item())
    assert worst["placed"] < 1e-4 * whole.std() < worst["off"]
    with pytest.raises(InputError, match="multiples of 6"):
        net(x, (6, 5, 500, 500))


def test_another_scale_starts_from_the_weights_of_the_first():
    x2, x3, narrow = (DerivedNetwork(BETA21, NetworkConfig(w, s)) for w, s in ((8, 2), (8, 3), (6, 3)))
    own = {name: value.clone() for name, value in x3.state_dict().items()}
    x3.start_from(x2)
    for name, value in x3.state_dict().items():
        assert torch.equal(value, own[name] if name.startswith("tail.upsample") else x2.state_dict()[name])
    again = DerivedNetwork(BETA21, NetworkConfig(8, 3))
    again.start_from(x3)
    assert torch.equal(again.tail.upsample.weight, x3.tail.upsample.weight)
    for other in (narrow, DerivedNetwork(BETA_PARA1, NetworkConfig(8, 3))):
        with pytest.raises(InputError, match="cannot start from"):
            other.start_from(x2)


# Genotypes


def test_derivation_by_hand():
    alpha = torch.full((3, 9), 0.05)
    alpha[[0, 1, 2], [8, 0, 4]] = 0.6
    beta = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.5, 0.3]])
    assert derive(alpha, beta) == Genotype(["dil_conv_5x5", "conv_1x1", "sep_conv_3x3"], [(1, 2), (2, 3)])


def test_the_logits_tell_equal_sparse_weights_apart():
    net = supernet("sparsestmax", 1.0, cells=5)
    with torch.no_grad():
        net.beta.copy_(torch.tensor([[0, 1, 9], [2, 0, 1], [0.1, 0.9, 1]]).repeat(1, 2)[:, :4])
        net.beta[2] = torch.tensor([0.3, 0.2, 1.5, 0.1])
    assert net.genotype().inputs == ((1, 2), (1, 3), (1, 3))


def test_genotype_round_trip_text_and_picture(tmp_path):
    find_space("dlsr-x2").save_genotype(BETA_PARA1, tmp_path / "genotype.json")
    data = json.loads((tmp_path / "genotype.json").read_text())
    assert data["space"] == "dlsr-x2" and Genotype.from_dict(data) == BETA_PARA1  # with the order of the inputs
    assert str(BETA21) == "conv1 sep7 sep5, B3(1,2) B4(2,3) B5(2,4) B6(4,5)"
    (_, cell), (_, network) = BETA21.graph()
    assert ("r1", "r2", "sep_conv_7x7") in cell and ("in", "join", "") in cell
    assert {source for source, target, _ in network if target == "cell 5"} == {"cell 2", "cell 4"}
    assert sum(target == "tail" for _, target, _ in network) == 7


GOOD = {"operations": ["conv_1x1", "sep_conv_7x7", "sep_conv_5x5"], "inputs": [[1, 2], [2, 3]]}


@pytest.mark.parametrize(
    "data, message",
    [
        (GOOD | {"operations": ["conv_1x1", "sep_conv_7x7"]}, "needs 3 of"),
        (GOOD | {"operations": ["conv_1x1", "sep_conv_7x7", "warp"]}, "warp"),
        (GOOD | {"operations": "conv_1x1"}, "needs 3 of"),
        (GOOD | {"operations": dict.fromkeys(GOOD["operations"])}, "needs 3 of"),
        (GOOD | {"inputs": []}, r"inputs are \[\]; cells from the third on need 2"),
        (GOOD | {"inputs": {"12": 1}}, "cells from the third on need 2"),
        (GOOD | {"inputs": ["12"]}, "inputs of cell 3"),
        (GOOD | {"inputs": [[1.7, 2]]}, "inputs of cell 3"),
        (GOOD | {"inputs": [[True, 2]]}, "inputs of cell 3"),
        (GOOD | {"inputs": [[1, 2], [2, 4]]}, "inputs of cell 4"),
        (GOOD | {"inputs": [[0, 1]]}, "inputs of cell 3"),
        (GOOD | {"inputs": [[1, 1]]}, "inputs of cell 3"),
        (GOOD | {"inputs": [[1, 2], [1, 2, 3]]}, "inputs of cell 4"),
        (GOOD | {"inputs": [[1], [1, 2]]}, "inputs of cell 3"),
        (GOOD | {"inputs": [[1, float("inf")]]}, "inputs of cell 3"),
        (GOOD | {"inputs": [1, 2]}, "inputs of cell 3 of the genotype are 1"),
        ({"operations": GOOD["operations"]}, "inputs"),
        ({"cells": [], "path": []}, "no DLSR genotype"),
        ([1, 2], "no DLSR genotype"),
    ],
)
def test_foreign_genotypes_are_refused(data, message):
    with pytest.raises(InputError, match=message):
        Genotype.from_dict(data)


def test_equal_genotypes_are_equal_whatever_holds_them():
    lists = Genotype(list(BETA21.operations), [list(pair) for pair in BETA21.inputs])
    assert lists == BETA21 and hash(lists) == hash(BETA21)


def test_random_genotypes_are_legal_and_differ():
    drawn = [random_genotype(6, seed) for seed in range(20)]
    assert len({str(genotype) for genotype in drawn}) == 20
    assert {genotype.cells for genotype in drawn} == {6}
    assert {name for genotype in drawn for name in genotype.operations} == set(CANDIDATES)


@pytest.mark.parametrize("field, value", [("width", 3), ("cells", 2), ("scale", 5), ("weights", "entmax")])
def test_bad_sizes_are_named(field, value):
    with pytest.raises(InputError, match=field):
        SupernetConfig(**{field: value})
    if field in ("width", "scale"):
        with pytest.raises(InputError, match=field):
            NetworkConfig(**{field: value})


def test_presets_name_sizes_that_exist():
    assert SEARCH_PRESETS.keys() == TRAIN_PRESETS.keys() == {"demo", "paper", "smoke", "tiny"}
    sizes = {name: SupernetConfig(**preset.get("supernet", {})) for name, preset in SEARCH_PRESETS.items()}
    assert sizes["paper"] == SupernetConfig() and sizes["tiny"].width == 18
    networks = {name: NetworkConfig(**preset.get("network", {})) for name, preset in TRAIN_PRESETS.items()}
    assert networks["paper"] == NetworkConfig() and networks["tiny"].width == 18


# Published weights


def luma(image):
    """Y of (H, W, 3) pixels on the [0, 255] scale, without its border of 2 pixels."""
    return (16 + image.astype(np.float64) @ np.array([65.481, 128.553, 24.966]) / 255)[2:-2, 2:-2, None]


@needs_weights
@needs_set5
def test_the_published_tiny_network_gets_the_published_numbers_on_set5():
    net = load_published(TINY18)
    assert net.genotype == BETA21 and net.config == NetworkConfig(width=18, scale=2) and not net.training
    scores = []
    for path in sorted((SHARED / "Set5" / "HR").glob("*.png")):
        clean, small = imread(path), imread(SHARED / "Set5" / "LR_bicubic" / "X2" / f"{path.stem}x2.png")
        with torch.no_grad():
            large = net(torch.from_numpy(small).permute(2, 0, 1)[None].float() / 255)[0].permute(1, 2, 0).numpy()
        pair = luma((255 * large).round().clip(0, 255)), luma(clean[: large.shape[0], : large.shape[1]])
        scores.append((psnr(*pair), ssim(*pair)))
    assert len(scores) == 5
    assert np.mean(scores, axis=0) == pytest.approx([37.71, 0.9595], abs=0.01)
    assert np.mean(scores, axis=0)[1] == pytest.approx(0.9595, abs=0.0003)


def checkpoint(path, genotype=BETA21, width=8, scale=2, change=lambda weights: None):
    """A file as the authors' code writes it, and the network whose weights it holds."""
    torch.manual_seed(0)
    net = DerivedNetwork(genotype, NetworkConfig(width, scale))
    weights = {_published_name(name): value.clone() for name, value in net.state_dict().items()}
    change(weights)
    torch.save({"epoch": 1, "state_dict": weights, "optimizer": {}}, path)
    return net


@pytest.mark.parametrize("genotype", [BETA21, BETA_PARA1])
@pytest.mark.parametrize("width, scale", [(8, 2), (11, 3), (18, 4)])
def test_operations_width_and_scale_are_found(tmp_path, genotype, width, scale):
    saved = checkpoint(tmp_path / "net.pt", genotype, width, scale)
    loaded = load_published(tmp_path / "net.pt")
    assert loaded.genotype == genotype and loaded.config == NetworkConfig(width, scale)
    x = torch.rand(1, 3, 17, 15)
    assert torch.equal(loaded(x), saved(x))


def test_other_networks_are_read_with_their_genotype(tmp_path):
    path = tmp_path / "net.pt"
    for name in CANDIDATES:
        genotype = Genotype([name, "dil_conv_3x3", "conv_7x7"], [(1, 2), (3, 1)])
        checkpoint(path, genotype)
        assert load_published(path, genotype).genotype == genotype
        with pytest.raises(InputError, match=f"{name}, dil_conv_3x3, conv_7x7, which are those of no published"):
            load_published(path)
        with pytest.raises(InputError, match="the genotype conv_1x1, sep_conv_7x7, sep_conv_5x5"):
            load_published(path, BETA21)


def without(name):
    return lambda weights: weights.pop(name)


def instead(name, value):
    return lambda weights: weights.update({name: value})


@pytest.mark.parametrize(
    "change, message",
    [
        (without("B3.esa.conv_f.bias"), "lacks B3.esa.conv_f.bias"),
        (without("fea_conv.weight"), "no published checkpoint of DLSR: it has no convolution fea_conv.weight"),
        (without("upsampler.0.weight"), "no convolution upsampler.0.weight"),
        (without("B1.c2_r.op.5.weight"), r"B1.c2_r.op.\* are those of no candidate of width 8: 1.weight"),
        (instead("extra.weight", torch.ones(1)), "has also extra.weight"),
        (instead("c7.0.weight", torch.ones(8, 16, 1, 1)), "has also c7.0.weight"),
        (instead("c4.0.weight", torch.ones(8, 24, 1, 1)), r"c4.0.weight is torch.float32 \(8, 24, 1, 1\).*\(8, 16, 1"),
        (instead("B4.c1_r.op.0.weight", torch.ones(8, 8, 3, 3)), r"B4.c1_r.op.0.weight .*\(8, 8, 1, 1\)"),
        (instead("B1.c3_r.op.1.weight", torch.ones(8, 1, 9, 9)), "B1.c3_r.op.* no candidate"),
        (instead("upsampler.0.weight", torch.ones(13, 8, 3, 3)), "upsampler.0.weight 13"),
        (instead("fea_conv.bias", torch.ones(8, dtype=torch.int64)), "fea_conv.bias is torch.int64"),
        (instead("LR_conv.bias", torch.full((8,), torch.nan)), "LR_conv.bias holds NaN"),
        (instead("epoch", 7), "holds no state_dict of weights"),
        (instead(7, torch.ones(1)), "holds no state_dict of weights"),
        (instead("LR_conv.bias", torch.ones(8).to_sparse()), "holds no state_dict of weights"),
        (lambda weights: weights.clear(), "no convolution fea_conv.weight"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, change, message):
    checkpoint(tmp_path / "net.pt", change=change)
    with pytest.raises(InputError, match=message):
        load_published(tmp_path / "net.pt")


def test_a_network_of_fewer_cells_lacks_the_others(tmp_path):
    checkpoint(tmp_path / "net.pt", Genotype(BETA21.operations, [(1, 2)]))
    with pytest.raises(InputError, match="lacks B4.*and [0-9]+ more"):
        load_published(tmp_path / "net.pt")


def test_files_that_are_no_checkpoints_are_refused(tmp_path):
    path = tmp_path / "net.pt"
    with pytest.raises(InputError, match="no checkpoint at"):
        load_published(path)
    with pytest.raises(InputError, match="no checkpoint at"):
        load_published(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="damaged"):
        load_published(path)
    checkpoint(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match="damaged"):
        load_published(path)
    for foreign in ([1, 2], {"state_dict": 3}, {"model": {"a": torch.ones(1)}}, torch.ones(3)):
        torch.save(foreign, path)
        with pytest.raises(InputError, match="no published checkpoint"):
            load_published(path)
    torch.save(DerivedNetwork(BETA21, NetworkConfig(width=8)), path)  # a pickled module is code
    with pytest.raises(InputError, match="no PyTorch checkpoint of plain weights"):
        load_published(path)


# Candidates that the user names

OPS = """
import torch
from torch import nn

class Twice(nn.Sequential):
    def __init__(self, channels):
        super().__init__(*[nn.Sequential(nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)) for _ in range(2)])

class Mean(nn.Module):
    def __init__(self, channels):
        super().__init__()
    def forward(self, x):
        return x.mean(dim=1, keepdim=True).expand_as(x)

class Shrinks(nn.Module):
    def __init__(self, channels):
        super().__init__()
    def forward(self, x):
        return x[..., 1:]

class InPlace(nn.ReLU):
    def __init__(self, channels):
        super().__init__(inplace=True)

def twice(channels):
    return Twice(channels)
"""


@pytest.fixture
def ops(tmp_path, monkeypatch):
    monkeypatch.setattr(own, "_LOADED", {})
    (tmp_path / "my_ops.py").write_text(OPS)
    return f"{tmp_path}/my_ops.py"


@pytest.mark.parametrize("weights", ["softmax", "sparsestmax"])
def test_named_candidates_and_one_s_own_are_searched_derived_and_read_back(ops, weights):
    torch.manual_seed(0)
    config = SupernetConfig(width=8, cells=4, weights=weights, candidates=["conv_3x3", f"{ops}:Twice", f"{ops}:Mean"])
    net, plain = (Supernet(config, mixed_op).double() for mixed_op in (MixedOp, PlainMixedOp))
    plain.load_state_dict(net.state_dict())
    x = torch.rand(1, 3, 16, 17, dtype=torch.float64)
    assert net.alpha.shape == (3, 3)
    assert_same(output_and_gradients(net, x), output_and_gradients(plain, x))
    labels, rows = net.architecture_weights()["alpha, position 2"]
    assert labels == ["conv_3x3", "my_ops.py:Twice", "my_ops.py:Mean"] and rows.shape == (1, 3)
    assert Supernet.candidate_costs(config, "params") == [576, 2 * (576 + 8), 0]
    assert Supernet.candidate_costs(config, "madds")[1] >= 2 * 576 * 32 * 32
    with torch.no_grad():
        net.alpha.copy_(torch.eye(3)[[1, 2, 0]])
    genotype = net.genotype()
    assert genotype.operations == ("my_ops.py:Twice", "my_ops.py:Mean", "conv_3x3")
    assert str(genotype).startswith("Twice Mean conv3, B3(")
    data = json.loads(json.dumps({"operations": genotype.operations, "inputs": genotype.inputs}))
    assert Genotype.from_dict(data) == genotype
    derived = DerivedNetwork(genotype, NetworkConfig(width=4))
    assert type(derived.cells[0].operations[0]).__name__ == "Twice"
    assert derived(torch.rand(1, 3, 15, 16)).shape == (1, 3, 30, 32)


def test_random_genotypes_hold_named_candidates_only(ops):
    candidates = [f"{ops}:Twice", "dil_conv_3x3"]
    config = SupernetConfig(width=4, candidates=candidates)
    drawn = [find_space("dlsr-x3").random_genotype(config, seed) for seed in range(20)]
    assert {name for genotype in drawn for name in genotype.operations} == {"my_ops.py:Twice", "dil_conv_3x3"}


def test_one_candidate_is_enough():
    net = Supernet(SupernetConfig(width=4, cells=3, candidates=["conv_1x1"]))
    assert net(torch.rand(1, 3, 15, 15)).shape == (1, 3, 30, 30)
    assert net.genotype().operations == ("conv_1x1",) * 3


def test_a_genotype_s_candidates_run_no_file(ops, monkeypatch):
    monkeypatch.chdir(Path(ops).parent)
    with pytest.raises(InputError, match="my_ops.py:Twice is code of somebody's own.*--code my_ops.py"):
        Genotype.from_dict(GOOD | {"operations": ["my_ops.py:Twice", "conv_1x1", "conv_1x1"]})
    own.load_code(ops)
    with pytest.raises(InputError, match="my_ops.py:twice is a function; a candidate operation is a class"):
        Genotype.from_dict(GOOD | {"operations": ["my_ops.py:twice", "conv_1x1", "conv_1x1"]})


def test_candidates_that_cannot_be_used_are_refused(ops):
    for candidates, message in {
        (): "supernet.candidates is",
        ("conv_1x1", "conv_1x1"): "names conv_1x1 twice",
        ("conv_9x9",): "supernet.candidates: unknown candidate operation 'conv_9x9'; known: conv_1x1",
        (f"{ops}:Nothing",): "my_ops.py holds no 'Nothing'",
    }.items():
        with pytest.raises(InputError, match=message):
            SupernetConfig(candidates=list(candidates))
    with pytest.raises(InputError, match=r"my_ops.py:Shrinks makes \(1, 4, 8, 7\) of \(1, 4, 8, 8\)"):
        Supernet(SupernetConfig(width=4, candidates=[f"{ops}:Shrinks"]))
    in_place = Genotype(["my_ops.py:InPlace", "conv_1x1", "conv_1x1"], [(1, 2)])
    with pytest.raises(InputError, match="my_ops.py:InPlace changes its input in place, which other edges read, too"):
        DerivedNetwork(in_place, NetworkConfig(width=4))
