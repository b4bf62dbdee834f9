"""The support of MixedOp: for all sets of live candidates the numbers of plain autograd, and the dead cost nothing."""

import itertools
import random

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from srnas_fast import MixedOp
from srnas_fast.metrics import LiveMemory
from srnas_fast.mixed import PlainMixedOp, Zero
from srnas_fast.simplex import sparsestmax
from srnas_fast.spaces.hinas.operations import CANDIDATES

CHANNELS, DENSE = 3, (1, 3, 5, 7)


def conv(size, dilation=1, groups=1, stride=1):
    padding = dilation * (size // 2)
    return nn.Conv2d(CHANNELS, CHANNELS, size, stride, padding, dilation, groups=groups, bias=False)


def half(size, dilation=1, stride=1):
    return [nn.ReLU(), conv(size, dilation, CHANNELS, stride), conv(1)]


def dlsr():
    separable = [nn.Sequential(*half(size), *half(size)) for size in (3, 5, 7)]
    return [*map(conv, DENSE), *separable, *(nn.Sequential(*half(size, 2)) for size in (3, 5))]


def hinas():
    return [make(CHANNELS, "leaky", False) for make in CANDIDATES.values()]


def pc_darts(stride=1):
    def norm():
        return nn.BatchNorm2d(CHANNELS, affine=False)

    pools = nn.MaxPool2d(3, stride, 1), nn.AvgPool2d(3, stride, 1, count_include_pad=False)
    skip = nn.Identity() if stride == 1 else nn.Sequential(nn.Tanh(), conv(1, stride=2))
    return [
        Zero(stride),
        *(nn.Sequential(pool, norm()) for pool in pools),
        skip,
        *(nn.Sequential(*half(size, 1, stride), norm(), *half(size), norm()) for size in (3, 5)),
        *(nn.Sequential(*half(size, 2, stride), norm()) for size in (3, 5)),
    ]


SPACES = {"dlsr": dlsr, "hinas": hinas, "pc-darts": pc_darts, "pc-darts at stride 2": lambda: pc_darts(2)}


def twins(make):
    """A plain and a recomputing mixed operation with equal parameters."""
    made = []
    for kind in (PlainMixedOp, MixedOp):
        torch.manual_seed(0)
        made.append(kind(make()).double())
    return made


def images(shape=(2, CHANNELS, 5, 6)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()


def with_gradients(op, x, weights, alive, inputs):
    y = op(x, weights, alive)
    dy = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape).sin()
    return y, torch.autograd.grad(y, inputs, dy, allow_unused=True)


def supports(space):
    """All of DLSR, whose dense candidates are merged; of the others each alone, all, and some more at random."""
    count = len(SPACES[space]())
    every = [alive for alive in itertools.product((False, True), repeat=count) if any(alive)]
    if space == "dlsr":
        return every
    return [alive for alive in every if sum(alive) in (1, count)] + random.Random(0).sample(every, 16)


@pytest.mark.parametrize("space", SPACES)
def test_same_numbers_as_plain_for_every_support(space):
    plain, ours = twins(SPACES[space])
    x = images()
    weights = torch.linspace(0.2, 1, len(ours.ops), dtype=torch.float64).requires_grad_()
    owner = [k for k, op in enumerate(ours.ops) for _ in op.parameters()]
    buffers = {name: buffer.clone() for name, buffer in ours.named_buffers()}
    for alive in supports(space):
        for op in (plain, ours):
            op.load_state_dict(buffers, strict=False)  # the running statistics are those of the start
        y, (dx, dweights, *found) = with_gradients(ours, x, weights, alive, [x, weights, *ours.parameters()])
        expected = with_gradients(plain, x, weights, alive, [x, weights, *plain.parameters()])
        torch.testing.assert_close(y, expected[0], rtol=1e-10, atol=1e-10)
        # Where only Zero is alive plain autograd knows of no gradients.
        exact = [torch.zeros_like(g) if e is None else e for g, e in zip((dx, dweights), expected[1], strict=False)]
        torch.testing.assert_close([dx, dweights], exact, rtol=1e-10, atol=1e-10)
        assert not dweights[~torch.tensor(alive)].any()
        for k, gradient, right in zip(owner, found, expected[1][2:], strict=True):
            if alive[k]:
                torch.testing.assert_close(gradient, right, rtol=1e-10, atol=1e-10)
            else:  # zeros and not None, so that decay and momentum act
                assert right is None and gradient is not None and not gradient.any()
        for (name, buffer), right in zip(ours.named_buffers(), plain.buffers(), strict=True):
            torch.testing.assert_close(buffer, right, rtol=1e-10, atol=1e-10)
            assert alive[int(name.split(".")[1])] or torch.equal(buffer, buffers[name])


@pytest.mark.parametrize("space", SPACES)
def test_what_is_dead_is_not_looked_at(space):
    """Its parameters are NaN, which any use would spread, the merged kernel's among them."""
    _, ours = twins(SPACES[space])
    x, weights = images(), torch.full((len(ours.ops),), 0.5, dtype=torch.float64, requires_grad=True)
    clean = {name: p.detach().clone() for name, p in ours.named_parameters()}
    for alive in supports(space)[:: 7 if space == "dlsr" else 1]:
        ours.load_state_dict(clean, strict=False)
        with torch.no_grad():
            for op in itertools.compress(ours.ops, (not a for a in alive)):
                for p in op.parameters():
                    p.fill_(torch.nan)
        y, found = with_gradients(ours, x, weights, alive, [x, weights, *ours.parameters()])
        assert all(tensor.isfinite().all() for tensor in (y, *found))


def test_dead_opaque_candidates_are_not_called():
    called = []

    class Called(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name, self.scale = name, nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, x):
            called.append(self.name)
            return self.scale * x * torch.rand(()).double()

    op = MixedOp([Called("dead"), Called("live"), conv(3).double()])
    weights = torch.ones(3, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(3)
    with_gradients(op, images(), weights, [False, True, True], [weights, *op.parameters()])
    assert called == ["live", "live"]  # forward, and once more in the backward pass
    drawn = torch.get_rng_state()
    torch.manual_seed(3)
    torch.rand(())
    assert torch.equal(drawn, torch.get_rng_state())


@pytest.mark.parametrize("space", ["hinas", "pc-darts at stride 2"])
def test_nothing_of_the_dead_is_stored(space):
    ours = MixedOp(SPACES[space]()).double()
    x, weights = images((2, CHANNELS, 16, 16)), torch.ones(len(ours.ops), dtype=torch.float64, requires_grad=True)

    def held(alive):
        with LiveMemory() as memory:
            y = ours(x, weights, alive)
            return memory.held() - y.nbytes

    count = len(ours.ops)
    each = [held([k == j for j in range(count)]) for k in range(count)]
    assert 0 < max(each) < 0.05 * x.nbytes  # statistics, and never an image
    for alive in [[True] * count, *random.Random(1).sample(supports(space), 2)]:
        assert held(alive) == sum(itertools.compress(each, alive))


class Convolutions(TorchDispatchMode):
    """The sizes of the kernels of all convolutions, forward and backward."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "srnas_fast" and "convolution" in function.name():
            kernel = args[2 if "backward" in function.name() else 1]
            self.sizes.append(kernel.shape[-1])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("merge", [True, False])
def test_the_merged_kernel_shrinks_to_the_largest_live_size(merge, branches):
    op = MixedOp(map(conv, DENSE), merge=merge)
    x = torch.randn(2, CHANNELS, 9, 8, requires_grad=True)
    weights = torch.ones(len(DENSE), requires_grad=True)
    for alive in itertools.product((False, True), repeat=len(DENSE)):
        if not any(alive):
            continue
        with Convolutions() as seen:
            with_gradients(op, x, weights, alive, [x, weights, *op.parameters()])
        sizes = list(itertools.compress(DENSE, alive))
        assert seen.sizes == 2 * (sizes[-1:] if merge else sizes)


@pytest.mark.parametrize("radius", [0.0, 0.6, 1.0])
def test_gradients_of_sparse_logits_are_those_of_running_everything(radius):
    plain, ours = twins(dlsr)
    logits = 0.5 * torch.randn(9, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    results = []
    for op in (plain, ours):
        z, x = logits.clone().requires_grad_(), images()
        weights, support = sparsestmax(z, radius, return_support=True)
        alive = support if op is ours else None
        results.append(with_gradients(op, x, weights, alive, [x, z, *op.parameters()]))
    assert 1 <= support.sum() < 9
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-10)
