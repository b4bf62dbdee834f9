"""Mixed operations that the programs of a GPU serve, and what comes of one, for the emulator and for a real card."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from srnas_fast.mixed import PlainMixedOp, Zero
from srnas_fast.spaces.hinas.operations import CANDIDATES

X_LIES = ("dense", "channels_last", "slice", "slice of channels_last", "every second", "transposed", "expanded")
DY_LIES = ("dense", "channels_last", "every second", "of rows", "of one number")


def conv(inputs: int, outputs: int, size: int, dilation: int = 1, groups: int = 1, stride: int = 1, bias: bool = False):
    """A convolution that keeps height and width, but for its stride."""
    return nn.Conv2d(inputs, outputs, size, stride, dilation * (size // 2), dilation, groups, bias=bias)


def separable(c: int, size: int, dilation: int = 1, stride: int = 1) -> list[nn.Module]:
    return [nn.ReLU(), conv(c, c, size, dilation, c, stride), conv(c, c, 1)]


def hinas(c: int, activation: str = "leaky", affine: bool = False) -> list[nn.Module]:
    return [make(c, activation, affine) for make in CANDIDATES.values()]


def dlsr(c: int) -> list[nn.Module]:
    plain = [conv(c, c, size) for size in (1, 3, 5, 7)]
    twice = [nn.Sequential(*separable(c, size), *separable(c, size)) for size in (3, 5, 7)]
    return [*plain, *twice, *(nn.Sequential(*separable(c, size, 2)) for size in (3, 5))]


class FactorizedReduce(nn.Module):
    """The skip of DARTS at stride 2, which no program serves."""

    def __init__(self, c: int):
        super().__init__()
        self.even, self.odd = conv(c, c - c // 2, 1, stride=2), conv(c, c // 2, 1, stride=2)
        self.norm = nn.BatchNorm2d(c, affine=False)

    def forward(self, x):
        x = x.relu()
        odd = nn.functional.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]
        return self.norm(torch.cat([self.even(x), self.odd(odd)], 1))


def darts(c: int, stride: int = 1, reduce: bool = False) -> list[nn.Module]:
    """The candidates of DARTS; at stride 2 with its skip, if ``reduce``."""

    def norm() -> nn.Module:
        return nn.BatchNorm2d(c, affine=False)

    skip = nn.Identity() if stride == 1 else FactorizedReduce(c) if reduce else Zero(stride)
    pools = [nn.MaxPool2d(3, stride, 1), nn.AvgPool2d(3, stride, 1, count_include_pad=False)]
    twice = [nn.Sequential(*separable(c, size, 1, stride), norm(), *separable(c, size), norm()) for size in (3, 5)]
    dilated = [nn.Sequential(*separable(c, size, 2, stride), norm()) for size in (3, 5)]
    return [Zero(stride), *(nn.Sequential(pool, norm()) for pool in pools), skip, *twice, *dilated]


def foreign(c: int) -> list[nn.Module]:
    """What the spaces do not have: biases, slopes for each channel, settings of norms, several identities."""
    slope = nn.PReLU(c)  # of two candidates
    return [
        nn.Sequential(slope, conv(c, c, 3, 2, c), conv(c, c, 1, bias=True), nn.BatchNorm2d(c, momentum=None)),
        nn.Sequential(slope, conv(c, c, 5, bias=True), nn.BatchNorm2d(c, track_running_stats=False)),
        nn.Identity(),
        nn.Sequential(nn.PReLU(), conv(c, c, 3, bias=True)),
        nn.Sequential(
            *[nn.PReLU(c), conv(c, c, 7, 1, c), conv(c, c, 1, bias=True), nn.BatchNorm2d(c, eps=0.1, momentum=0.3)],
            *[nn.PReLU(c), conv(c, c, 3, 1, c), conv(c, c, 1, bias=True)],
        ),
        nn.Sequential(
            *[nn.PReLU(), conv(c, c, 3, 1, c), conv(c, c, 1, bias=True)],
            *[nn.PReLU(), conv(c, c, 3, 1, c), conv(c, c, 1), nn.BatchNorm2d(c, track_running_stats=False)],
        ),
        nn.Sequential(nn.PReLU(), nn.AvgPool2d(5, 1, 2), nn.BatchNorm2d(c)),
        nn.Sequential(nn.LeakyReLU(-0.3), nn.MaxPool2d(3, 1, 1)),
        nn.Identity(),
    ]


def wide(c: int) -> list[nn.Module]:
    """Dense convolutions of more channels than kernels of a program take, beside others; the norms not in training."""
    leaky = nn.LeakyReLU(0.2)
    return [
        conv(c, c, 3, bias=True),
        conv(c, c, 1),
        nn.Sequential(nn.ReLU(), conv(c, c, 3), nn.BatchNorm2d(c)),
        nn.Identity(),
        nn.Sequential(nn.ReLU(), *separable(c, 3)[1:], nn.BatchNorm2d(c)),
        conv(c, c, 3, 2),
        nn.Sequential(leaky, conv(c, c, 5, bias=True)),
        nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.BatchNorm2d(c, affine=False)),
    ]


def uneven(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    """Candidates that return another number of channels than they get."""
    middle = inputs + 3
    dense = [nn.Sequential(nn.PReLU(), conv(inputs, outputs, 3, bias=True), nn.BatchNorm2d(outputs))]
    return [
        *dense * (stride == 1),
        nn.Sequential(nn.ReLU(), conv(inputs, inputs, 3, 1, inputs, stride), conv(inputs, outputs, 1, bias=True)),
        nn.Sequential(
            *[nn.PReLU(inputs), conv(inputs, inputs, 5, 1, inputs, stride), conv(inputs, middle, 1)],
            *[nn.BatchNorm2d(middle), nn.PReLU(middle), conv(middle, middle, 3, 1, middle), conv(middle, outputs, 1)],
            nn.BatchNorm2d(outputs, affine=False),
        ),
    ]


def everything(name: str) -> bool:
    return True


@dataclass(frozen=True)
class Case:
    """A mixed operation and what is asked of it.

    ``make`` gives its candidates. ``shape`` is that of x with all of its channels. ``mode``: "train", "eval",
    "frozen", where norms that have running statistics use them while the rest trains, or "mixed", where every second
    one does. ``wanted`` tells by its name whether a gradient is wanted: of "x", "weights", "edge" or a parameter.
    """

    make: Callable[[], list[nn.Module]]
    shape: tuple[int, int, int, int]
    partial: int = 1
    mode: str = "train"
    support: tuple[bool, ...] | None = None
    x_lies: str = "dense"
    dy_lies: str = "dense"
    wanted: Callable[[str], bool] = everything
    seed: int = 0
    alike: bool = False  # x of -1, 0 and 1 alone: maxima are taken several times, and kinks are met


def laid(x: Tensor, how: str) -> Tensor:
    """The same numbers, otherwise in memory; NaN beside them."""
    n, c, h, w = x.shape
    if how == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if how == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    if how.startswith("slice"):
        room = torch.full((n, c + 3, h + 2, w + 5), torch.nan, dtype=x.dtype, device=x.device)
        room = room.contiguous(memory_format=torch.channels_last) if "last" in how else room
        room[:, 2 : 2 + c, 1 : 1 + h, 3 : 3 + w] = x
        return room[:, 2 : 2 + c, 1 : 1 + h, 3 : 3 + w]
    if how == "every second":
        room = torch.full((2 * n, c, 2 * h, 2 * w), torch.nan, dtype=x.dtype, device=x.device)
        room[1::2, :, ::2, 1::2] = x
        return room[1::2, :, ::2, 1::2]
    if how == "expanded":
        return x[:1].expand(x.shape)
    if how == "of rows":
        return x[:, :, :, :1].expand(x.shape)
    if how == "of one number":
        return x[:1, :1, :1, :1].expand(x.shape)
    assert how == "dense"
    return x


def build(kind: type[PlainMixedOp], case: Case, dtype: torch.dtype, device="cpu") -> PlainMixedOp:
    """The mixed operation: its numbers are always the same, rounded to the type."""
    torch.manual_seed(case.seed)
    op = kind(case.make(), partial=case.partial).double()
    for parameter in op.parameters():
        if parameter.dim() == 4:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        else:
            nn.init.normal_(parameter, 0.3, 0.5)
    for name, values in op.named_buffers():
        if name.endswith("running_mean"):
            nn.init.normal_(values)
        elif name.endswith("running_var"):
            nn.init.uniform_(values, 0.5, 2)
    op.to(device, dtype).train(case.mode != "eval")
    norms = [m for m in op.modules() if isinstance(m, nn.BatchNorm2d) and m.track_running_stats]
    if case.mode in ("frozen", "mixed"):
        for norm in norms[:: 1 if case.mode == "frozen" else 2]:
            norm.eval()
    return op


def tensors(op: PlainMixedOp, case: Case, dtype: torch.dtype, device="cpu") -> dict[str, Tensor]:
    """x, weights and, with partial channels, the edge's weight; all that is wanted requires gradients."""
    generator = torch.Generator().manual_seed(case.seed + 1)
    x = torch.randn(case.shape, generator=generator, dtype=torch.float64).to(device, dtype)
    x = x.round().clamp(-1, 1) if case.alike else x
    weights = torch.rand(len(op.ops), generator=generator, dtype=torch.float64).to(device, torch.float32)
    given = {"x": laid(x, case.x_lies), "weights": weights if dtype is not torch.float64 else weights.double()}
    if case.partial > 1:
        given["edge"] = torch.tensor(0.75, dtype=dtype, device=device)
    given = {name: tensor.detach() for name, tensor in given.items()}
    for name, tensor in [*given.items(), *op.named_parameters()]:
        tensor.requires_grad_(case.wanted(name))
    return given


def gradient_of(y: Tensor, case: Case, rounded: torch.dtype | None = None) -> Tensor:
    """The gradient of the result: always the same numbers."""
    generator = torch.Generator().manual_seed(case.seed + 2)
    numbers = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(rounded or y.dtype)
    return laid(numbers.to(y.device, y.dtype), case.dy_lies)


def gradients(
    op: PlainMixedOp, case: Case, given: dict[str, Tensor], y: Tensor, rounded: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Those that are wanted, by name."""
    named = {name: tensor for name, tensor in [*given.items(), *op.named_parameters()] if tensor.requires_grad}
    if not named or not y.requires_grad:  # of zeros alone
        return {f"d{name}": torch.zeros_like(tensor) for name, tensor in named.items()}
    found = torch.autograd.grad(y, list(named.values()), gradient_of(y, case, rounded), allow_unused=True)
    pairs = zip(named.items(), found, strict=True)
    return {f"d{name}": torch.zeros_like(tensor) if got is None else got for (name, tensor), got in pairs}


def outcome(
    op: PlainMixedOp, case: Case, given: dict[str, Tensor], rounded: torch.dtype | None = None
) -> dict[str, Tensor]:
    """y, the gradients that are wanted, the buffers afterwards."""
    y = op(given["x"], given["weights"], case.support, given.get("edge"))
    found = gradients(op, case, given, y, rounded)
    return {"y": y.detach(), **found, **{name: values.clone() for name, values in op.named_buffers()}}


def exact(case: Case, dtype: torch.dtype, parameter: torch.dtype | None = None) -> dict[str, Tensor]:
    """The outcome of plain autograd in float64, of numbers that have been rounded to a type."""
    op = build(PlainMixedOp, case, parameter or dtype).double()
    given = tensors(op, case, dtype)
    given = {name: t.detach().double().requires_grad_(t.requires_grad) for name, t in given.items()}
    return outcome(op, case, given, dtype)


def errors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Of each tensor the largest error, of its largest number or of 1."""
    assert found.keys() == expected.keys()
    result = {}
    for name, ours in found.items():
        ours, theirs = ours.detach().cpu().double(), expected[name].detach().cpu().double()
        assert ours.shape == theirs.shape, name
        error = (ours - theirs).abs().max() / theirs.abs().max().clamp(min=1)
        result[name] = float(error.nan_to_num(torch.inf))
    return result


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    wrong = {name: error for name, error in errors(found, expected).items() if not error <= tolerance}
    assert not wrong, wrong
