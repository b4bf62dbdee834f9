"""Compiling for a GPU before the first pass: all programs of a network at once, on all cores."""

import torch
from torch import nn

from srnas_fast.mixed import gpu
from srnas_fast.mixed.mixed_op import MixedOp


def compile_ahead(module: nn.Module) -> int:
    """Compile what the mixed operations of a module need in its present mode, if it is on a GPU; how many programs.

    Otherwise each is compiled at its first pass, one after the other. Images are expected in the type of the
    parameters; nothing is run.

    >>> from srnas_fast import MixedOp
    >>> compile_ahead(MixedOp([nn.Conv2d(4, 4, 3, padding=1), nn.Identity()]))  # on the CPU
    0
    """
    found: dict[torch.device, dict[gpu.GpuProgram, None]] = {}
    for op in module.modules():
        parameter = next(op.parameters(), None)
        if not isinstance(op, MixedOp) or parameter is None or not gpu.on_gpu(parameter):
            continue
        prepared = op._prepare()
        inputs = set().union(*(group.inputs for group in prepared.plan.groups))
        if len(inputs) != 1:
            continue  # they do not tell how many channels they see
        x = torch.empty((1, inputs.pop() * op.partial, 2, 2), dtype=parameter.dtype, device=parameter.device)
        made = prepared.program_for(x, op.partial)
        if made is not None:
            program = gpu.program_of(made, x.dtype, prepared.kind_of(x))
            found.setdefault(x.device, {})[program] = None
    for device, programs in found.items():
        gpu.load(list(programs), device)
    return sum(map(len, found.values()))
