"""A choice of an operation for each edge: the genotype, the supernet's part, and drawing at random."""

from collections import Counter
from dataclasses import asdict

import pytest
import torch

from srnas_fast.errors import InputError
from srnas_fast.spaces import Choices, ChoiceSupernet, random_choices

OPS = ["conv", "dilated", "skip"]


def test_a_genotype_comes_back_and_is_drawn_as_a_chain():
    genotype = Choices(["skip", "conv"])
    assert Choices.from_dict({"space": "mine"} | asdict(genotype), OPS) == genotype != Choices(["conv", "skip"])
    assert genotype.graph() == [("chain", [("x0", "x1", "skip"), ("x1", "x2", "conv")])]
    assert str(genotype) == "skip conv"


@pytest.mark.parametrize("data", [None, [], "conv", {}, {"operations": []}, {"operations": "conv"}, {"cells": [["a"]]}])
def test_data_without_operations_are_refused(data):
    with pytest.raises(InputError, match='names no operations; it needs "operations", a list'):
        Choices.from_dict(data, OPS)


@pytest.mark.parametrize("name", ["dance", "", None, 3, ["conv"], {"conv": 1}])
def test_operations_that_are_not_known_are_refused(name):
    with pytest.raises(InputError, match="unknown operation .* in the genotype; known: conv, dilated, skip"):
        Choices.from_dict({"operations": ["conv", name]}, dict.fromkeys(OPS))


def test_the_logits_are_what_a_search_moves_and_the_weights_their_softmax():
    net = ChoiceSupernet(4, dict.fromkeys(OPS))
    assert net.architecture_parameters() == [net.logits] and net.network_parameters() == []
    assert net.logits.shape == (4, 3) and 0 < net.logits.abs().max() < 0.01
    labels, rows = net.architecture_weights()["edges"]
    assert labels == OPS and torch.equal(rows, net.logits.softmax(-1))


def test_the_genotype_takes_the_largest_weights_of_equal_ones_the_first():
    net = ChoiceSupernet(3, OPS)
    with torch.no_grad():
        net.logits.copy_(torch.tensor([[0.0, 2.0, 1.0], [1.0, 1.0, 1.0], [-3.0, -2.0, -1.0]]))
    assert net.genotype() == Choices(["dilated", "conv", "skip"])


def test_weights_of_one_s_own_hold_everywhere():
    class Reversed(ChoiceSupernet):
        def weights(self):
            return (-self.logits).softmax(-1)

    net = Reversed(1, OPS)
    with torch.no_grad():
        net.logits.copy_(torch.tensor([[0.0, -1.0, 5.0]]))
    assert net.genotype() == Choices(["dilated"])
    assert torch.equal(net.architecture_weights()["edges"][1], net.weights())


@pytest.mark.parametrize("edges, operations", [(0, OPS), (-1, OPS), (2, []), (2, ["conv", "conv"])])
def test_nothing_to_choose_from(edges, operations):
    with pytest.raises(InputError, match="has nothing to choose from; give edges from 1 up, and each operation once"):
        ChoiceSupernet(edges, operations)


def test_random_choices_are_even_and_their_seed_s():
    assert random_choices(9, OPS, seed=1) == random_choices(9, iter(OPS), seed=1) != random_choices(9, OPS, seed=2)
    counts = Counter(random_choices(30_000, dict.fromkeys(OPS), seed=0).operations)
    assert set(counts) == set(OPS) and all(abs(count - 10_000) < 400 for count in counts.values())


def test_drawing_leaves_torch_s_random_numbers_alone():
    state = torch.get_rng_state()
    random_choices(5, OPS, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
