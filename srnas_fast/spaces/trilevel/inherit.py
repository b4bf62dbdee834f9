"""Weights carried over: the network that is left of a supernet, with the weights that it has learnt."""

import torch

from srnas_fast.errors import InputError
from srnas_fast.spaces.own import short_name
from srnas_fast.spaces.trilevel.genotype import Genotype
from srnas_fast.spaces.trilevel.network import DerivedNetwork, NetworkConfig
from srnas_fast.spaces.trilevel.operations import narrowed
from srnas_fast.spaces.trilevel.supernet import Supernet


@torch.no_grad()
def inherit(supernet: Supernet, genotype: Genotype | None = None) -> DerivedNetwork:
    """The derived network in the supernet's form, with copies of the supernet's weights, of which it takes slices.

    Where all weights of the supernet are one-hot and the genotype is what they say, it makes what the supernet makes.
    The published derived form has fewer weights in places, and cannot (see :class:`NetworkConfig`).

    Args:
        supernet: a trained one.
        genotype: of one of its networks; None: :meth:`Supernet.genotype`.

    Raises:
        InputError: the supernet has no such network.

    >>> from srnas_fast.spaces.trilevel.supernet import SupernetConfig
    >>> net = inherit(Supernet(SupernetConfig(width=8, cells=2, searched=1, ups=0)))
    >>> net.config.form, net(torch.rand(1, 3, 4, 4)).shape
    ('supernet', torch.Size([1, 3, 16, 16]))
    """
    config, tree = supernet.config, supernet.tree
    genotype = genotype or supernet.genotype()
    names = list(map(short_name, config.candidates))
    foreign = {name for row in genotype.operations for name in row} - {*names}
    modules = _modules(supernet, genotype.path)
    if genotype.variant != config.variant or foreign or modules is None:
        raise InputError(
            f"the genotype {genotype} is none of this supernet, which is of variant {config.variant}, {tree.layers} "
            f"cells and {tree.levels} ups and of {', '.join(names)}"
        )
    net = DerivedNetwork(genotype, NetworkConfig(config.width, config.scale, config.output, form="supernet"))
    net.to(supernet.gamma)
    net.frame.load_state_dict(supernet.frame.state_dict())
    cell = 0
    for step, mine, theirs in zip(genotype.path, net.steps, modules, strict=True):
        if step == "1":
            mine.load_state_dict(theirs.state_dict())
            continue
        for p, ends in enumerate(genotype.channels(cell, config.width)):
            name = genotype.operations[cell][p]
            op = theirs.positions[p].ops[names.index(name)]
            mine.operations[p].load_state_dict(op.state_dict() | narrowed(name, op, *ends))
        cell += 1
    return net.train(supernet.training)


def _modules(supernet: Supernet, path: str) -> list[torch.nn.Module] | None:
    """The cells and ups of a path; None where the supernet has no such path, or none that may end there."""
    tree, stem = supernet.tree, supernet.tree.stem
    if not path.startswith(stem[-1]):
        return None
    modules, here = [supernet.cells[name] for name in stem], stem[-1]
    for kind in path[len(stem) :]:
        found = [
            (node.name, step)
            for node in tree.nodes
            for step in node.steps
            if step.source == here and step.up == (kind == "1")
        ]
        if not found:
            return None
        ((here, step),) = found
        modules.append((supernet.ups if step.up else supernet.cells)[step.module])
    return modules if supernet.exits[tree.index[here]] else None
