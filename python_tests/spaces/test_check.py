"""A space of one's own is tried before it is searched: each fault in one line, and nothing is left of the trial."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

from srnas_fast import MixedOp
from srnas_fast.data import DenoisingData, SuperResolutionData
from srnas_fast.errors import InputError
from srnas_fast.losses import DenoisingLoss, SuperResolutionLoss
from srnas_fast.spaces import Denoising, DifferentiableSupernet, Space, SuperResolution
from srnas_fast.spaces.check import check_space, differentiable, sampled
from srnas_fast.spaces.known import find_space, known_spaces

OPS = {"conv": lambda c: nn.Conv2d(c, c, 3, padding=1), "skip": lambda c: nn.BatchNorm2d(c)}


@dataclass
class Config:
    width: int = 4


@dataclass(frozen=True)
class Genotype:
    operations: list

    def graph(self):
        return [("chain", [(f"r{i}", f"r{i + 1}", name) for i, name in enumerate(self.operations)])]


class Supernet(DifferentiableSupernet):
    def __init__(self, config):
        super().__init__()
        self.head, self.tail = nn.Conv2d(1, config.width, 1), nn.Conv2d(config.width, 1, 1)
        self.edges = nn.ModuleList(MixedOp([make(config.width) for make in OPS.values()]) for _ in range(2))
        self.logits = nn.Parameter(1e-3 * torch.randn(2, len(OPS)))

    def forward(self, x, support=None):
        y = self.head(x)
        for edge, row in zip(self.edges, self.logits.softmax(-1), strict=True):
            y = edge(y, row)
        return x + self.tail(y)

    def architecture_parameters(self):
        return [self.logits]

    def architecture_weights(self):
        return {"edges": (list(OPS), self.logits.softmax(-1))}

    def genotype(self):
        return Genotype([list(OPS)[k] for k in self.logits.argmax(-1).tolist()])


class Network(nn.Module):
    channels, smallest, reach = 1, 1, 2

    def __init__(self, genotype, config):
        super().__init__()
        layers = [OPS[name](config.width) for name in genotype.operations]
        self.layers = nn.Sequential(nn.Conv2d(1, config.width, 1), *layers, nn.Conv2d(config.width, 1, 1))

    def forward(self, x):
        return x + self.layers(x)


MINE = Space(
    name="mine",
    supernet_config=Config,
    supernet=Supernet,
    network_config=Config,
    network=Network,
    read_genotype=lambda data: Genotype(data["operations"]),
    task=Denoising,
    data=DenoisingData,
    loss=DenoisingLoss,
)


def check(by=differentiable, **changes):
    check_space(replace(MINE, **changes), Config(), by)


def refused(message, by=differentiable, **changes):
    with pytest.raises(InputError, match=message) as error:
        check(by, **changes)
    text = str(error.value)
    assert text.startswith("search space mine: ") and "\n" not in text and len(text) < 500


def test_a_sound_space_passes():
    check()


@pytest.mark.parametrize("name", known_spaces())
def test_our_own_pass_at_the_paper_s_size(name):
    space = find_space(name)
    config = space.supernet_config(**space.search_preset("paper").get("supernet", {}))
    check_space(space, config, {"bilevel": differentiable, "reinforce": sampled}[space.algorithm])


def test_nothing_is_left_of_the_trial():
    net = Supernet(Config())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    built = []

    def supernet(config):
        random.random(), np.random.rand()
        built.append(Supernet(config))
        return built[-1]

    def drawn():
        return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()

    generators = drawn()
    check(supernet=supernet)
    assert drawn() == generators and len(built) == 1
    refused("support fails", supernet=lambda config: supernet(config) and changed(support=raises)(config))
    assert drawn() == generators
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


# The supernet


def without(*names):
    """A supernet that is no DifferentiableSupernet and lacks these."""
    kept = {name: value for base in (DifferentiableSupernet, Supernet) for name, value in vars(base).items()}
    methods = {name: value for name, value in kept.items() if callable(value) and name not in names}

    def __init__(self, config):
        nn.Module.__init__(self)
        self.head, self.logits = nn.Conv2d(1, 1, 1), nn.Parameter(torch.zeros(2, 2))

    return type("Bare", (nn.Module,), methods | {"__init__": __init__})


METHODS = ["architecture_parameters", "network_parameters", "architecture_weights", "genotype", "support", "sparsity"]


@pytest.mark.parametrize("name", METHODS)
def test_methods_that_are_missing(name):
    refused(rf"its supernet Bare has no {name}\(\); define it, .*or derive it from srnas", supernet=without(name))


@pytest.mark.parametrize("name", ["architecture_parameters", "architecture_weights", "genotype"])
def test_methods_that_are_left_as_they_were(name):
    kind = type("Half", (Supernet,), {name: getattr(DifferentiableSupernet, name)})
    refused(rf"its supernet Half has no {name}\(\); define it, ", supernet=kind)


def test_no_forward():
    refused(r"has no forward\(\)", supernet=without("forward"))
    refused(r"has no forward\(\)", supernet=type("Half", (Supernet,), {"forward": nn.Module.forward}))


def changed(**methods):
    return type("Changed", (Supernet,), methods)


def raises(*_, **__):
    raise KeyError("lost")


def detached(self, x, support=None):
    return Supernet.forward(self, x).detach()


def fixed(self, x, support=None):
    return self.head(x)[:, :1] + self.tail.weight.sum()


@pytest.mark.parametrize(
    "supernet, message",
    [
        (Supernet(Config()), "its supernet is built already; give the class"),
        (lambda config: 3, "its supernet is a int; give a torch.nn.Module"),
        (lambda: 3, r"the supernet fails: TypeError: .*takes 0 positional arguments"),
        (raises, r"the supernet fails: KeyError: 'lost' \(.*test_check.py, line \d+\)"),
        (changed(forward=raises), r"the supernet on images of shape \(2, 1, 16, 16\) fails: KeyError: 'lost' \("),
        (changed(forward=lambda self, x: x), "fails: TypeError: .* unexpected keyword argument 'support'"),
        (
            changed(forward=lambda self, x, support=None: self.head(x)),
            r"makes \(2, 4, 16, 16\) .*make \(2, 1, 16, 16\)",
        ),
        (changed(forward=lambda self, x, support=None: None), "makes a NoneType of images"),
        (changed(forward=detached), "so nothing is searched"),
        (changed(forward=fixed), r"does not depend on architecture_parameters\(\), so nothing is searched"),
        (changed(architecture_parameters=lambda self: []), r"architecture_parameters\(\) returns no list"),
        (changed(architecture_parameters=lambda self: [self.logits.softmax(-1)]), "of the supernet's own parameters"),
        (changed(architecture_parameters=lambda self: self.logits), "returns no list of the supernet's own"),
        (changed(architecture_parameters=lambda self: [nn.Parameter(torch.ones(1))]), "returns no list of the super"),
        (changed(network_parameters=lambda self: []), r"network_parameters\(\) returns no list"),
        (changed(network_parameters=lambda self: list(self.parameters())), "holds logits, too"),
        (changed(architecture_weights=lambda self: {}), r"architecture_weights\(\) does not return a dictionary"),
        (changed(architecture_weights=lambda self: {"a": self.logits}), "does not return a dictionary of group"),
        (changed(architecture_weights=lambda self: {"a": (["x"], self.logits)}), "does not return a dictionary"),
        (changed(support=raises), "support fails: KeyError"),
        (changed(genotype=raises), "genotype fails: KeyError"),
        (changed(genotype=lambda self: {"operations": []}), "its genotype is a dict; give a dataclass of plain data"),
        (changed(genotype=lambda self: Genotype), "its genotype is a type"),
        (changed(genotype=lambda self: Genotype([self.logits])), "its genotype is no plain data"),
        (changed(genotype=lambda self: Genotype(["conv", ("skip", 1)])), "read back as .*JSON makes lists of tuples"),
        (changed(genotype=lambda self: Genotype({1: "conv"})), "texts of all keys"),
        (changed(genotype=lambda self: Genotype(["dance"])), "the derived network fails: KeyError: 'dance'"),
    ],
)
def test_supernets_that_are_refused(supernet, message):
    refused(message, supernet=supernet)


# Genotypes


@dataclass
class Blind:
    operations: Sequence


def test_genotypes_that_do_not_come_back():
    refused("read_genotype fails: KeyError: 'ops'", read_genotype=lambda data: Genotype(data["ops"]))
    check(read_genotype=lambda data: Genotype(**data))  # as it is called: without the space's name
    refused("read back as None", read_genotype=lambda data: None)
    refused(
        r"has no graph\(\)",
        supernet=changed(genotype=lambda self: Blind(["conv"])),
        read_genotype=lambda data: Blind(data["operations"]),
    )
    named = make_dataclass("Named", ["space"])("mine")
    refused("its genotype has a field space, .*; rename it", supernet=changed(genotype=lambda self: named))
    refused("random_genotype fails: KeyError", random_genotype=raises)
    refused("its genotype is a int", random_genotype=lambda config, seed: seed)
    check(random_genotype=lambda config, seed: Genotype(["conv"]))


def test_a_file_names_its_space_first_whatever_the_genotype_holds(tmp_path):
    MINE.save_genotype(make_dataclass("Named", ["depth", "space"])(3, "theirs"), tmp_path / "genotype.json")
    assert list(json.loads((tmp_path / "genotype.json").read_text()).items()) == [("space", "mine"), ("depth", 3)]


# Derived networks


def network(**parts):
    return type("Changed", (Network,), parts)


@pytest.mark.parametrize(
    "derived, message",
    [
        (network(reach=None), "its derived network Changed has no reach; give pixels or a number from 0 up"),
        (network(channels=0), "has 0 as its channels; give pixels or a number from 1 up"),
        (network(smallest=1.5), "has 1.5 as its smallest"),
        (network(forward=raises), r"the derived network on images of shape \(1, 1, 17, 20\) fails: KeyError"),
        (network(forward=lambda self, x: self.layers(x)[..., :-1]), r"makes \(1, 1, 17, 19\) of"),
        (network(forward=nn.Module.forward), "no torch.nn.Module with a forward"),
        (lambda genotype, config: 3, "its derived network int is no torch.nn.Module"),
        (lambda genotype: 3, "the derived network fails: TypeError"),
    ],
)
def test_derived_networks_that_are_refused(derived, message):
    refused(message, network=derived)


# Costs


def test_costs_need_weights_of_their_number():
    refused(
        r"has candidate_costs, but its supernet no candidate_weights\(\)", candidate_costs=lambda config, by: [1, 0]
    )
    weighed = changed(candidate_weights=lambda self: self.logits.softmax(-1))
    check(candidate_costs=lambda config, by: [1, 0], supernet=weighed)
    refused(
        r"candidate_weights\(\) makes \(2, 2\); its last dimension must be the 3 costs",
        candidate_costs=lambda config, by: [1, 0, 2],
        supernet=weighed,
    )
    refused("candidate_costs fails: KeyError", candidate_costs=raises, supernet=weighed)


# Super-resolution


@dataclass
class Larger(Config):
    scale: int = 2
    smallest: int = 3


class LargerSupernet(Supernet):
    def __init__(self, config):
        super().__init__(config)
        self.grow = nn.Sequential(nn.Conv2d(1, 12, 1), nn.PixelShuffle(2))

    def forward(self, x, support=None):
        return self.grow(super().forward(x[:, :1]))


class LargerNetwork(nn.Module):
    channels, smallest, reach, scale, grid = 3, 3, 2, 2, 1

    def __init__(self, genotype, config):
        super().__init__()
        self.grow = nn.Sequential(nn.Conv2d(3, 12, 1), nn.PixelShuffle(2))

    def forward(self, x, place=None):
        return self.grow(x)


class Unplaced(LargerNetwork):
    def forward(self, x):
        return self.grow(x)


LARGER = {
    "task": SuperResolution,
    "data": SuperResolutionData,
    "loss": SuperResolutionLoss,
    "supernet_config": Larger,
    "supernet": LargerSupernet,
    "network_config": Larger,
    "network": LargerNetwork,
}


def test_super_resolution():
    check_space(replace(MINE, **LARGER), Larger(), differentiable)
    for config, changes, message in (
        (Larger(scale=3), {}, r"makes \(2, 3, 32, 32\) of .*; it should make \(2, 3, 48, 48\)"),
        (Config(), {}, "Config has no scale, which super-resolution needs; add it"),
        (Larger(), {"network_config": Config}, "Config has no scale, which super-resolution needs; add it"),
        (Larger(), {"network": type("N", (LargerNetwork,), {"grid": 0})}, "has 0 as its grid"),
        (Larger(), {"network": type("N", (LargerNetwork,), {"scale": None})}, "has no scale"),
        (Larger(), {"network": Unplaced}, "told its part's place in the whole, on images .* fails: TypeError"),
    ):
        with pytest.raises(InputError, match=message):
            check_space(replace(MINE, **LARGER | changes), config, differentiable)


# By reinforcement


class Policy(nn.Module):
    weights = (1.0,)

    def __init__(self, config):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(2))

    def sample(self, generator):
        p = self.logits.log_softmax(-1)
        k = int(torch.multinomial(p.exp().detach(), 1, generator=generator))
        return Sample(Genotype([list(OPS)[k]]), p[k][None], -(p.exp() * p).sum()[None])


@dataclass
class Sample:
    genotype: Genotype
    log_probabilities: torch.Tensor
    entropies: torch.Tensor


class Paths(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ops = nn.ModuleDict({name: make(1) for name, make in OPS.items()})

    def network_parameters(self):
        return list(self.parameters())

    def cost(self, genotype, by, side):
        return 1.0

    def forward(self, x, genotype):
        for name in genotype.operations:
            x = self.ops[name](x)
        return x


def test_by_reinforcement():
    paths = {"by": sampled, "algorithm": "reinforce", "supernet": Paths, "policy": Policy}
    check(**paths)
    refused("its search draws architectures, but it has no policy", **paths | {"policy": None})
    refused("policy fails: KeyError", **paths | {"policy": raises})
    refused(r"its policy Conv2d has no sample\(generator\)", **paths | {"policy": lambda config: nn.Conv2d(1, 1, 1)})
    refused("policy.sample fails: KeyError", **paths | {"policy": type("P", (Policy,), {"sample": raises})})
    two = type("P", (Policy,), {"weights": (1.0, 1.0)})
    refused("one for each of policy.weights, which are 2", **paths | {"policy": two})
    refused(r"has no cost\(\); define it, what a genotype takes", **paths | {"supernet": Supernet})
    worth = type("N", (Paths,), {"cost": lambda self, genotype, by, side: None})
    refused(r"cost\(genotype, 'madds', 16\) is None; give a number", **paths | {"supernet": worth})
    short = type("N", (Paths,), {"forward": lambda self, x, genotype: x[:1]})
    refused(r"makes \(1, 1, 16, 16\) of", **paths | {"supernet": short})


def test_an_algorithm_and_a_task_of_one_s_own_are_theirs_to_know():
    check(None, algorithm=type("Mine", (), {}), supernet=Paths)
    drawn = {"supernet": Paths, "random_genotype": lambda config, seed: Genotype(["conv"])}
    refused("its derived network int is no", None, network=lambda genotype, config: 3, **drawn)
    seen = []
    check(lambda trial, net: seen.append((trial.config, type(net))), supernet=Paths)
    assert seen == [(Config(), Paths)]

    class Colours:
        pass

    check(task=Colours)
