"""Whether a search space is what the commands need: tried on noise before the first step of a search."""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from srnas_fast.errors import InputError
from srnas_fast.spaces.own import told
from srnas_fast.spaces.space import Space
from srnas_fast.spaces.supernet import DifferentiableSupernet
from srnas_fast.spaces.task import Denoising, SuperResolution

# What the algorithms call, and what to write.
_DIFFERENTIABLE = {
    "architecture_parameters": "the list of its logits",
    "network_parameters": "all other parameters",
    "architecture_weights": "for each group its column labels and its weights (rows, columns)",
    "genotype": "the discrete architecture now",
    "support": "which weights are not zero, or None",
    "sparsity": "a dictionary of numbers for the log, or {}",
}
_LEFT_TO_WRITE = tuple(
    getattr(DifferentiableSupernet, name) for name in ("architecture_parameters", "architecture_weights", "genotype")
)
_SAMPLED = {
    "network_parameters": "its parameters",
    "cost": "what a genotype takes: cost(genotype, by, side)",
}
_PLACE = (0, 0, 600, 600)  # top, left; height and width of the whole
_SIDE = 16  # pixels of the square images, more where the space takes none so small


def check_space(space: Space, config: Any, check_algorithm: "Callable[[Trial, nn.Module], Any] | None" = None) -> None:
    """Try a supernet of the space, a genotype and its derived network on small images of noise.

    All are built anew for it, under random numbers of their own: the search finds everything as it was.

    Args:
        space: the search space.
        config: of its supernet.
        check_algorithm: of what the algorithm needs, given the trial and the supernet, such as :func:`differentiable`
            or :func:`sampled`; the genotype that it returns is tried, too.

    Raises:
        InputError: something is missing, raises, or does not make what it should; one line that names the space, the
            fault, and the file and line where the user's code raised.

    >>> from srnas_fast.spaces import find_space
    >>> space = find_space("dlsr-x2")
    >>> check_space(space, space.supernet_config(width=4, cells=3), differentiable)
    """
    with _generators_spared():
        trial = Trial(space, config)
        net = trial.supernet()
        genotype = check_algorithm(trial, net) if check_algorithm else None
        if space.random_genotype is not None:
            drawn = trial.plain_data(trial.call("random_genotype", space.random_genotype, config, 0))
            genotype = drawn if genotype is None else genotype
        if genotype is not None:
            trial.network(genotype)


def differentiable(trial: "Trial", net: nn.Module) -> Any:
    """A supernet whose logits a gradient moves; returns its genotype."""
    trial.require_methods(net, _DIFFERENTIABLE, DifferentiableSupernet)
    logits = trial.call("architecture_parameters", net.architecture_parameters)
    weights = trial.call("network_parameters", net.network_parameters)
    registered = {id(parameter) for parameter in net.parameters()}
    for name, found in (("architecture_parameters", logits), ("network_parameters", weights)):
        found = list(found) if isinstance(found, Sequence) else []
        if not found or not all(id(parameter) in registered for parameter in found):
            raise trial.refuse(f"{name}() returns no list of the supernet's own parameters; give at least one")
    if {id(parameter) for parameter in logits} & {id(parameter) for parameter in weights}:
        raise trial.refuse("network_parameters() holds logits, too; leave them out, or both optimisers would move them")
    net.radius = 0.0
    for parameter in weights:  # as in a step of the architecture
        parameter.requires_grad_(False)
    support = trial.call("support", net.support)
    result = trial.forward(net, "the supernet", trial.config, 2, support=support)
    if result is not None:
        gradients = [None]
        if result.requires_grad:
            gradients = torch.autograd.grad(result.sum(), logits, allow_unused=True)
        if all(gradient is None for gradient in gradients):
            raise trial.refuse("its supernet does not depend on architecture_parameters(), so nothing is searched")
    with torch.no_grad():
        _table_of_weights(trial, trial.call("architecture_weights", net.architecture_weights))
        _costs(trial, net)
        return trial.plain_data(trial.call("genotype", net.genotype))


def sampled(trial: "Trial", net: nn.Module) -> Any:
    """A supernet that runs one architecture at a time, and the policy that draws them; returns one that it drew."""
    trial.require_methods(net, _SAMPLED)
    if trial.space.policy is None:
        raise trial.refuse("its search draws architectures, but it has no policy; give what makes one from a config")
    policy = trial.call("policy", trial.space.policy, trial.config)
    if not callable(getattr(policy, "sample", None)) or not isinstance(policy, nn.Module):
        raise trial.refuse(f"its policy {type(policy).__name__} has no sample(generator); give a module that has")
    sample = trial.call("policy.sample", policy.sample, torch.Generator().manual_seed(0))
    parts = [getattr(sample, name, None) for name in ("log_probabilities", "entropies")]
    count = len(getattr(policy, "weights", ()))
    if not all(isinstance(part, Tensor) and part.shape == (count,) and part.requires_grad for part in parts):
        raise trial.refuse(
            "policy.sample() returns no log_probabilities and entropies with gradients, one for each of "
            f"policy.weights, which are {count}"
        )
    genotype = trial.plain_data(getattr(sample, "genotype", None))
    trial.forward(net, "the supernet", trial.config, 2, genotype)
    for by in ("madds", "params"):
        cost = trial.call("cost", net.cost, genotype, by, _SIDE)
        if isinstance(cost, bool) or not isinstance(cost, int | float):
            raise trial.refuse(f"cost(genotype, {by!r}, {_SIDE}) is {cost!r}; give a number")
    return genotype


class Trial:
    """One space and a configuration of its supernet, with what the checks do."""

    def __init__(self, space: Space, config: Any):
        self.space, self.config = space, config

    def refuse(self, fault: str) -> InputError:
        return InputError(f"search space {self.space.name}: {fault}")

    def call(self, what: str, function: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
        """The result of the user's code; what it raises is told by the name of ``what`` failed."""
        with told(f"search space {self.space.name}: {what} fails"):
            return function(*args, **keywords)

    def supernet(self) -> nn.Module:
        space = self.space
        if isinstance(space.supernet, nn.Module):  # whose call would be its forward
            raise self.refuse("its supernet is built already; give the class, which a search builds from its settings")
        net = self.call("the supernet", space.supernet, self.config)
        if not isinstance(net, nn.Module):
            raise self.refuse(f"its supernet is a {type(net).__name__}; give a torch.nn.Module")
        if type(net).forward is nn.Module.forward:
            raise self.refuse(f"its supernet {type(net).__name__} has no forward(); define it")
        return net

    def require_methods(self, net: nn.Module, methods: dict[str, str], base: type | None = None) -> None:
        """Refuse a supernet that lacks one of them, each with what to write, or derive from ``base``."""
        for name, meaning in methods.items():
            given = getattr(type(net), name, None)
            if not callable(given) or given in _LEFT_TO_WRITE:
                derive = base is not None and not isinstance(net, base)
                hint = f", or derive it from srnas_fast.spaces.{base.__name__}" if derive else ""
                raise self.refuse(f"its supernet {type(net).__name__} has no {name}(); define it, {meaning}{hint}")

    def plain_data(self, genotype: Any) -> Any:
        """The genotype as it comes back from a JSON file; it must be the same."""
        if not is_dataclass(genotype) or isinstance(genotype, type):
            raise self.refuse(f"its genotype is a {type(genotype).__name__}; give a dataclass of plain data")
        try:
            data = json.loads(json.dumps(asdict(genotype)))
        except (TypeError, ValueError) as error:
            raise self.refuse(f"its genotype is no plain data ({error}); use numbers, texts and lists") from None
        if "space" in data:
            raise self.refuse("its genotype has a field space, but files name the search space there; rename it")
        again = self.call("read_genotype", self.space.read_genotype, data)
        if again != genotype:
            raise self.refuse(
                f"its genotype {genotype} is read back as {again}; JSON makes lists of tuples and texts of all keys"
            )
        graph = self.call("genotype.graph", getattr(genotype, "graph", list))
        try:
            drawn = [(title, [(source, target, label) for source, target, label in edges]) for title, edges in graph]
        except (TypeError, ValueError):
            drawn = []
        if not drawn:
            raise self.refuse("its genotype has no graph() of (title, [(source, target, operation), ...]); define it")
        return genotype

    def network(self, genotype: Any) -> None:
        """The derived network, and the sizes that the task reads from its configuration."""
        config = self.call("network_config", self.space.network_config)
        if hasattr(self.config, "scale") and hasattr(config, "scale") and is_dataclass(config):
            config = replace(config, scale=self.config.scale)  # a genotype may fit no other
        net = self.call("the derived network", self.space.network, genotype, config)
        if not isinstance(net, nn.Module) or type(net).forward is nn.Module.forward:
            raise self.refuse(f"its derived network {type(net).__name__} is no torch.nn.Module with a forward()")
        enlarges = issubclass(self.space.task, SuperResolution)
        needed = {"reach": 0, "channels": 1, "smallest": 1} | ({"scale": 1, "grid": 1} if enlarges else {})
        for name, least in needed.items():
            value = getattr(net, name, None)
            if type(value) is not int or value < least:
                given = "has no" if value is None else f"has {value!r} as its"
                raise self.refuse(
                    f"its derived network {type(net).__name__} {given} {name}; give pixels or a number from {least} up"
                )
        net.eval()
        with torch.no_grad():
            self.forward(net, "the derived network", config, 1)
            if enlarges:
                self.forward(net, "the derived network, told its part's place in the whole,", config, 1, _PLACE)

    def forward(self, net: nn.Module, what: str, config: Any, batch: int, *args: Any, **keywords: Any) -> Tensor | None:
        """The result on noise, if it has the shape that the task asks for; None for a task of the user's own."""
        scale = 1
        if issubclass(self.space.task, SuperResolution):
            channels = 3
            for name in ("scale", "smallest"):
                if type(getattr(config, name, None)) is not int:
                    raise self.refuse(f"{type(config).__name__} has no {name}, which super-resolution needs; add it")
            scale = config.scale
        elif issubclass(self.space.task, Denoising):
            channels = 1
        else:
            return None
        least = max(_SIDE, getattr(config, "smallest", 1), getattr(net, "smallest", 1))
        sides = (least, least) if batch > 1 else (least + 1, least + 4)  # patches are square, images are of any size
        x = torch.rand(batch, channels, *sides)
        expected = (batch, channels, *(scale * side for side in sides))
        shape = tuple(x.shape)
        y = self.call(f"{what} on images of shape {shape}", net, x, *args, **keywords)
        if not isinstance(y, Tensor) or tuple(y.shape) != expected:
            made = tuple(y.shape) if isinstance(y, Tensor) else f"a {type(y).__name__}"
            raise self.refuse(f"{what} makes {made} of images of shape {shape}; it should make {expected}")
        return y


def _table_of_weights(trial: Trial, groups: Any) -> None:
    form = "a dictionary of group: (column labels, weights of shape (rows, columns))"
    for group in groups.values() if isinstance(groups, dict) and groups else [None]:
        try:
            labels, rows = group
            fits = rows.dim() == 2 and rows.shape[1] == len(labels)
        except (TypeError, ValueError, AttributeError):
            fits = False
        if not fits:
            raise trial.refuse(f"architecture_weights() does not return {form}")


def _costs(trial: Trial, net: nn.Module) -> None:
    if trial.space.expected_cost is not None:
        cost = trial.call("expected_cost", trial.space.expected_cost, net, "params")
        if not isinstance(cost, Tensor) or cost.dim():
            made = tuple(cost.shape) if isinstance(cost, Tensor) else type(cost).__name__
            raise trial.refuse(f"expected_cost(supernet, 'params') makes {made}; it should make a tensor ()")
    if trial.space.candidate_costs is None:
        return
    costs = trial.call("candidate_costs", trial.space.candidate_costs, trial.config, "params")
    if not callable(getattr(net, "candidate_weights", None)):
        raise trial.refuse("it has candidate_costs, but its supernet no candidate_weights(); define it")
    rows = trial.call("candidate_weights", net.candidate_weights)
    if not isinstance(rows, Tensor) or rows.shape[-1:] != (len(costs),):
        shape = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
        raise trial.refuse(f"candidate_weights() makes {shape}; its last dimension must be the {len(costs)} costs")


@contextmanager
def _generators_spared() -> Iterator[None]:
    """The global random generators of PyTorch, NumPy and Python go on afterwards as if the block had not been."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
