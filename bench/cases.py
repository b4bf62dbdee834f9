"""What is measured: mixed operations of the published search spaces, one primitive, and whole search steps."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.utils.data import default_collate

from srnas_fast.losses import ComplexityLoss
from srnas_fast.metrics import LiveMemory
from srnas_fast.search import Bilevel, BilevelConfig, RunConfig
from srnas_fast.search.bilevel import frozen
from srnas_fast.search.run import to_device
from srnas_fast.spaces import find_space
from srnas_fast.spaces.hinas.operations import CANDIDATES, Zero


def convolution(channels: int, size: int, dilation: int = 1, groups: int = 1, stride: int = 1) -> nn.Conv2d:
    """Without bias; keeps height and width, but for its stride."""
    padding = dilation * (size // 2)
    return nn.Conv2d(channels, channels, size, stride, padding, dilation, groups, bias=False)


def half(channels: int, size: int, dilation: int = 1, stride: int = 1) -> list[nn.Module]:
    """ReLU - depthwise - pointwise: once for a dilated convolution, twice for a separable one."""
    return [nn.ReLU(), convolution(channels, size, dilation, channels, stride), convolution(channels, 1)]


def hinas(channels: int) -> list[nn.Module]:
    """The seven candidates of HiNAS as its search has them: LeakyReLU, batch norm without scale and shift."""
    return [make(channels, "leaky", False) for make in CANDIDATES.values()]


def dlsr(channels: int) -> list[nn.Module]:
    """The nine candidates of DLSR: plain, separable and dilated convolutions, no batch norm."""
    plain = [convolution(channels, size) for size in (1, 3, 5, 7)]
    separable = [nn.Sequential(*half(channels, size), *half(channels, size)) for size in (3, 5, 7)]
    dilated = [nn.Sequential(*half(channels, size, dilation=2)) for size in (3, 5)]
    return plain + separable + dilated


class FactorizedReduce(nn.Module):
    """The skip connection of DARTS at stride 2: of the even and of the odd pixels half of the channels each."""

    def __init__(self, channels: int):
        super().__init__()
        self.even, self.odd = (nn.Conv2d(channels, channels // 2, 1, stride=2, bias=False) for _ in range(2))
        self.norm = nn.BatchNorm2d(channels, affine=False)

    def forward(self, x):
        x = x.relu()
        return self.norm(torch.cat([self.even(x), self.odd(x[:, :, 1:, 1:])], 1))


def pc_darts(channels: int, stride: int = 1) -> list[nn.Module]:
    """The eight candidates of DARTS: none, two pools, skip, separable and dilated convolutions."""

    def norm() -> nn.Module:
        return nn.BatchNorm2d(channels, affine=False)

    def separable(size: int) -> nn.Module:
        return nn.Sequential(*half(channels, size, stride=stride), norm(), *half(channels, size), norm())

    def dilated(size: int) -> nn.Module:
        return nn.Sequential(*half(channels, size, dilation=2, stride=stride), norm())

    pools = [nn.MaxPool2d(3, stride, 1), nn.AvgPool2d(3, stride, 1, count_include_pad=False)]
    return [
        Zero(stride),
        *(nn.Sequential(pool, norm()) for pool in pools),
        nn.Identity() if stride == 1 else FactorizedReduce(channels),
        *(separable(size) for size in (3, 5)),
        *(dilated(size) for size in (3, 5)),
    ]


@dataclass(frozen=True)
class Mixed:
    """A mixed operation: its candidates, made from the number of channels that they see, and the shape of its input.

    The candidates see the first ``1 / partial`` of the channels, and keep every ``stride``-th row and column.
    """

    candidates: Callable[[int], list[nn.Module]]
    shape: tuple[int, int, int, int]
    partial: int = 1
    stride: int = 1


@dataclass(frozen=True)
class Depthwise:
    """A depthwise convolution that keeps height and width, and the shape of its input."""

    size: int
    dilation: int
    shape: tuple[int, int, int, int]


@dataclass(frozen=True)
class Step:
    """A search step of a space's paper supernet after the warm-up: architecture update, weight update."""

    space: str
    batch: int

    @property
    def graphs(self) -> int:
        """Batches that the architecture learns from at once."""
        return 1 + find_space(self.space).search_preset("paper").get("search", {}).get("mixed_level", False)


@dataclass(frozen=True)
class Path:
    """A weight step of a space's paper supernet that samples paths, on one path."""

    space: str
    batch: int


MIXED = {
    "hinas": Mixed(hinas, (24, 12, 64, 64)),
    "hinas-wide": Mixed(hinas, (6, 20, 64, 64)),
    "dlsr": Mixed(dlsr, (4, 48, 48, 48)),
    "dlsr-32": Mixed(dlsr, (64, 48, 32, 32)),
    "pc-darts": Mixed(pc_darts, (64, 16, 32, 32)),
    "pc-darts-partial": Mixed(pc_darts, (64, 64, 32, 32), partial=4),
    "pc-darts-partial-reduce": Mixed(partial(pc_darts, stride=2), (64, 64, 32, 32), partial=4, stride=2),
}
DEPTHWISE = {
    "multi-depthwise/7x7": Depthwise(7, 1, (4, 48, 48, 48)),
    "multi-depthwise/3x3-dilated": Depthwise(3, 2, (4, 48, 48, 48)),
    "multi-depthwise/5x5-dilated": Depthwise(5, 2, (4, 48, 48, 48)),
}
STEPS = {
    "hinas-search": Step("hinas-denoise", 6),
    "dlsr-search/8": Step("dlsr-x2", 8),
    "dlsr-search/64": Step("dlsr-x2", 64),
    "hinas-sr-search": Step("hinas-sr-x4", 24),
}
PATHS = {"hnas-search": Path("hnas-x2", 16)}
HEADLINE = ("hinas", "dlsr", "pc-darts")
HEAVY = ("dlsr-32", "dlsr-search/64", "hinas-sr-search")  # the steps: 6 to 13 GB and minutes


def with_groups(known: list[str]) -> list[str]:
    """What may be given for cases: their names, and what stands before the slash in them."""
    return list(dict.fromkeys([*known, *(name.split("/")[0] for name in known)]))


def chosen(given: list[str] | None, known: list[str]) -> list[str]:
    """The cases to run: those given by their names, or by what stands before the slash in them; else all.

    Without a GPU a heavy one runs only when its whole name is given.
    """
    light = [name for name in known if name not in HEAVY or torch.cuda.is_available()]
    given = given or light
    return [name for name in known if name in given or name in light and name.split("/")[0] in given]


class TwoGraphs(Bilevel):
    """The plain way, which is that of DLSR's published search: both graphs are alive when one backward pass begins, and
    the weights get gradients, too."""

    def architecture_step(self, given, target, also=()):
        batches = [to_device(self.fabric, *batch) for batch in (*also, (given, target))]
        losses = [self.loss(self.model(x), y) for x, y in batches]
        self.architecture.zero_grad()
        self.fabric.backward(sum(losses) + (self.penalty() if self.penalty else 0))
        self.architecture.step()


def search_step(
    step: Step, mixed_op: Callable[..., nn.Module], layout: torch.memory_format, way: Callable[..., Bilevel] = Bilevel
) -> tuple[nn.Module, Callable[[], None], Callable[[], int]]:
    """The supernet, a function that does one search step, and one that tells what its graph holds.

    The last one runs the weight step's forward pass and returns the bytes then held.
    """
    torch.manual_seed(0)
    space = find_space(step.space)
    preset = {"supernet": {}, "data": {}, "search": {}} | space.search_preset("paper")
    size, config = space.supernet_config(**preset["supernet"]), BilevelConfig(**preset["search"])
    task, fabric = space.task(space.data(**preset["data"]), size), RunConfig().fabric()
    supernet, penalty = space.supernet(size, mixed_op), None
    if space.candidate_costs:
        cost = ComplexityLoss(space.candidate_costs(size, "params"))
        penalty = lambda: cost(supernet.candidate_weights())  # noqa: E731 as the search has it
    search = way(fabric, supernet, space.loss(), config, penalty)
    supernet.to(memory_format=layout)
    supernet.register_forward_pre_hook(lambda _, images: (images[0].contiguous(memory_format=layout),))
    stream = task.stream(task.images("search")[0], 0, "weights")
    given, target = default_collate([stream[n] for n in range(step.batch)])
    also = [(given, target)] if config.mixed_level else []

    def work() -> None:
        search.architecture_step(given, target, also)
        search.weight_step(given, target, epoch=0)
        if search.graphs and search.graphs.given_up:  # else a step without them would be measured under their name
            raise RuntimeError("no CUDA graphs, for the reason on stderr")

    def held() -> int:
        (x,) = to_device(fabric, given)
        with frozen(supernet.architecture_parameters()), LiveMemory() as graph:
            y = supernet(x)  # noqa: F841 it is what holds the graph
            return graph.held()

    return supernet, work, held


def path_step(case: Path, alone: bool) -> Callable[[], None]:
    """A function that does a weight step on one path, drawn at random.

    Args:
        case: the space and the batch.
        alone: whether the network holds the path's modules only, as a network of one architecture does.
    """
    torch.manual_seed(0)
    space = find_space(case.space)
    preset = space.search_preset("paper")
    size = space.supernet_config(**preset["supernet"])
    task, loss = space.task(space.data(**preset["data"]), size), space.loss(**preset["loss"])
    fabric = RunConfig().fabric()
    supernet, genotype = space.supernet(size).to(fabric.device), space.random_genotype(size, 0)
    stream = task.stream(task.images("search")[0], 0, "weights")
    given, target = to_device(fabric, *default_collate([stream[n] for n in range(case.batch)]))
    if alone:
        loss(supernet(given[:1], genotype), target[:1]).backward()
        for parameter in supernet.parameters():
            if parameter.grad is None:  # not on the path
                parameter.data = parameter.data.new_empty(0)
    optimizer = torch.optim.Adam([p for p in supernet.parameters() if p.numel()])

    def work() -> None:
        optimizer.zero_grad()
        loss(supernet(given, genotype), target).backward()
        optimizer.step()

    return work
