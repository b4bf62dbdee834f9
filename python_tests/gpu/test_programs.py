"""The programs of a GPU on a real card: mixed operations at the benchmark's shapes are served, and exact."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from srnas_fast import MixedOp
from srnas_fast.backends.gpu import why_not
from srnas_fast.mixed import PlainMixedOp, program

from ..gpu_programs.cases import (
    X_LIES,
    Case,
    assert_close,
    build,
    darts,
    dlsr,
    errors,
    exact,
    foreign,
    gradients,
    hinas,
    outcome,
    tensors,
    wide,
)

CUDA = torch.device("cuda")
# Of the largest entry; gradients of parameters in float32 are sums over all pixels.
TOLERANCES = {torch.float32: 5e-5, torch.float16: 2**-8, torch.bfloat16: 2**-5}
# The batches of bench/cases.py, but fewer images.
SPACES = {
    "hinas": Case(partial(hinas, 12), (6, 12, 64, 64)),
    "hinas-wide": Case(partial(hinas, 20), (3, 20, 64, 64)),
    "dlsr": Case(partial(dlsr, 48), (2, 48, 48, 48)),
    "pc-darts": Case(partial(darts, 16), (8, 16, 32, 32)),
    "pc-darts-partial": Case(partial(darts, 16), (8, 64, 32, 32), partial=4),
    "pc-darts-partial-reduce": Case(partial(darts, 16, 2), (8, 64, 32, 32), partial=4),
    "darts stride 2": Case(partial(darts, 16, 2), (4, 16, 33, 40)),
}
OTHERS = {
    "hinas prelu": Case(partial(hinas, 5, "prelu", True), (2, 5, 19, 33)),
    "hinas sine": Case(partial(hinas, 6, "sine", True), (2, 6, 17, 16), mode="mixed"),
    "hinas frozen": Case(partial(hinas, 12), (2, 12, 20, 18), mode="frozen"),
    "foreign": Case(partial(foreign, 7), (2, 7, 21, 5)),
    "wide": Case(partial(wide, 40), (2, 40, 18, 19), mode="eval"),
}
ALL = SPACES | OTHERS


@pytest.fixture(autouse=True)
def card(without_tf32, monkeypatch):
    """Skips where this machine has no programs on a GPU, and tells why."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    failure = why_not(torch.device("cuda", torch.cuda.current_device()))
    if failure:
        pytest.skip(f"{failure}")
    monkeypatch.delenv("SRNAS_FAST_BACKEND", raising=False)
    monkeypatch.setattr(program, "enabled", True)
    # Convolutions beside the kernels repeat, too.
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


def served(case, dtype=torch.float32):
    """The outcome on the card, by a program alone."""
    op = build(MixedOp, case, dtype, CUDA)
    given = tensors(op, case, dtype, CUDA)
    found = outcome(op, case, given)
    x, live = given["x"], op._prepared.live(case.support)
    share, alone = op._prepared.share(x, live, case.partial)
    assert share is not None and alone
    return found


def check(case, dtype=torch.float32):
    found = served(case, dtype)
    assert found["y"].dtype is found["dx"].dtype is dtype
    assert_close(found, exact(case, dtype), TOLERANCES[dtype])
    return found


@pytest.mark.parametrize("lies", ["dense", "channels_last"])
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", ALL)
def test_the_same_as_float64_on_the_cpu(name, dtype, lies):
    found = check(replace(ALL[name], x_lies=lies, dy_lies=lies), dtype)
    form = torch.channels_last if lies == "channels_last" else torch.contiguous_format
    assert found["y"].is_contiguous(memory_format=form) and found["dx"].is_contiguous(memory_format=form)


@pytest.mark.parametrize("name", ALL)
def test_no_worse_than_the_branches(name, monkeypatch):
    case = ALL[name]
    expected = exact(case, torch.float32)
    programs = errors(served(case), expected)
    monkeypatch.setattr(program, "enabled", False)
    op = build(MixedOp, case, torch.float32, CUDA)
    branches = errors(outcome(op, case, tensors(op, case, torch.float32, CUDA)), expected)
    assert all(error <= 4 * max(branches[key], 1e-5) for key, error in programs.items()), (programs, branches)


@pytest.mark.parametrize("lies", X_LIES[2:])
@pytest.mark.parametrize("name", ["hinas prelu", "foreign", "wide"])
def test_layouts(name, lies):
    for dy_lies in ("channels_last", "every second", "of one number"):
        check(replace(ALL[name], x_lies=lies, dy_lies=dy_lies))


@pytest.mark.parametrize("name", ["hinas", "pc-darts-partial-reduce", "foreign", "wide"])
def test_supports_and_wanted_gradients(name):
    case = ALL[name]
    count = len(case.make())
    for alive in (lambda k: k % 2 == 0, lambda k: k % 2 == 1, lambda k: k in (1, 4)):
        check(replace(case, support=tuple(map(alive, range(count)))))
    for wanted in (
        lambda name: name in ("x", "weights", "edge"),
        lambda name: name == "weights",
        lambda name: name == "x",
        lambda name: name.startswith("ops"),
    ):
        given = replace(case, wanted=wanted)
        assert_close(served(given), exact(given, torch.float32), TOLERANCES[torch.float32])


@pytest.mark.parametrize("name", ALL)
def test_results_repeat_to_the_bit(name):
    one, other = served(ALL[name]), served(ALL[name])
    for key, tensor in one.items():
        assert torch.equal(tensor, other[key]), key


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", SPACES)
def test_in_a_graph(name, dtype):
    """Captured once and replayed for other numbers, it gives what the same steps give outside, statistics too."""
    case = SPACES[name]
    captured, eager = (build(MixedOp, case, dtype, CUDA) for _ in range(2))
    given = tensors(captured, case, dtype, CUDA)
    other = {name: tensor.detach().clone().requires_grad_() for name, tensor in given.items()}
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            outcome(captured, case, given)
    torch.cuda.current_stream().wait_stream(stream)
    for _ in range(3):
        outcome(eager, case, other)

    def step(op, tensors_given):
        y = op(tensors_given["x"], tensors_given["weights"], None, tensors_given.get("edge"))
        wanted = [*tensors_given.values(), *op.parameters()]
        return [y.detach(), *torch.autograd.grad(y, wanted, torch.ones_like(y), allow_unused=True)]

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step(captured, given)
    for seed in range(3):  # capturing ran nothing
        numbers = torch.randn(case.shape, generator=torch.Generator().manual_seed(seed)).to(CUDA, dtype)
        with torch.no_grad():
            given["x"].copy_(numbers)
            other["x"].copy_(numbers)
        graph.replay()
        expected = step(eager, other)
        torch.cuda.synchronize()
        pairs = zip([*results, *captured.buffers()], [*expected, *eager.buffers()], strict=True)
        for found, right in pairs:
            assert (found is None and right is None) or torch.equal(found, right)


@pytest.mark.parametrize("name", ["hinas", "dlsr", "pc-darts-partial"])
def test_on_another_stream(name):
    """Kernels run behind what that stream does before, and before what it does next."""
    case = SPACES[name]
    expected = served(case)
    op = build(MixedOp, case, torch.float32, CUDA)
    right = tensors(op, case, torch.float32, CUDA)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        late = {key: torch.full_like(tensor, torch.nan) for key, tensor in right.items()}
        torch.cuda._sleep(50_000_000)
        for key, tensor in late.items():
            tensor.copy_(right[key].detach())
            tensor.requires_grad_()
        found = outcome(op, case, late)
        found = {key: tensor.clone() for key, tensor in found.items()}
    stream.synchronize()
    for key, tensor in found.items():
        assert torch.equal(tensor, expected[key]), key


def kernels(profiler):
    """The names of the kernels that ran."""
    events = [e for e in profiler.events() if e.device_type is torch.autograd.DeviceType.CUDA]
    return [e.name for e in events if not e.name.startswith(("Memcpy", "Memset"))]


def profiled(work):
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        result = work()
        torch.cuda.synchronize()
    return result, kernels(profiler)


@pytest.mark.parametrize("name", [name for name in SPACES if name != "dlsr"])
def test_launches(name):
    """Of a program's kernels, and nothing else runs between."""
    case = SPACES[name]
    op = build(MixedOp, case, torch.float32, CUDA)
    given = tensors(op, case, torch.float32, CUDA)
    outcome(op, case, given)  # compiles
    y, forward = profiled(lambda: op(given["x"], given["weights"]))
    dy, wanted = torch.randn_like(y), [given["x"], given["weights"], *op.parameters()]
    _, backward = profiled(lambda: torch.autograd.grad(y, wanted, dy, retain_graph=True, allow_unused=True))
    assert forward and backward and all("srnas_fast" in kernel for kernel in [*forward, *backward])
    assert len(forward) <= 6 and len(backward) <= 10, (forward, backward)
    for parameter in op.parameters():
        parameter.requires_grad_(False)
    y = op(given["x"], given["weights"])
    _, backward = profiled(lambda: torch.autograd.grad(y, [given["x"], given["weights"]], dy))
    assert all("srnas_fast" in kernel for kernel in backward) and len(backward) <= 8, backward


def test_launches_beside_torchs_convolutions():
    case = SPACES["dlsr"]
    op = build(MixedOp, case, torch.float32, CUDA)
    given = tensors(op, case, torch.float32, CUDA)
    outcome(op, case, given)
    y, forward = profiled(lambda: op(given["x"], given["weights"]))
    wanted = [given["x"], given["weights"], *op.parameters()]
    _, backward = profiled(lambda: torch.autograd.grad(y, wanted, torch.randn_like(y)))
    forward, backward = ([kernel for kernel in ran if "srnas_fast" in kernel] for ran in (forward, backward))
    assert 0 < len(forward) <= 6 and 0 < len(backward) <= 10, (forward, backward)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_autocast(dtype):
    case = SPACES["hinas"]
    outcomes = []
    for kind in (PlainMixedOp, MixedOp):
        op = build(kind, case, torch.float32, CUDA)
        given = tensors(op, case, dtype, CUDA)
        with torch.autocast("cuda", torch.bfloat16):
            y = op(given["x"], given["weights"])
        outcomes.append({"y": y.detach(), **gradients(op, case, given, y)})
    assert outcomes[0]["y"].dtype is outcomes[1]["y"].dtype
    expected = exact(case, dtype, torch.float32)
    assert_close(outcomes[1], {key: expected[key] for key in outcomes[1]}, 2**-4)


def test_float64_is_left_to_the_branches():
    case = ALL["hinas prelu"]
    op = build(MixedOp, case, torch.float64, CUDA)
    given = tensors(op, case, torch.float64, CUDA)
    assert_close(outcome(op, case, given), exact(case, torch.float64), 1e-10)
    assert op._prepared.share(given["x"], op._prepared.all, 1) == (None, False)


def test_an_image_whose_elements_32_bits_cannot_count():
    """A view of more than 2^31 elements is left to the branches; many images of fewer are not."""
    room = torch.cuda.mem_get_info()[0]
    if room < 12 * 2**30:
        pytest.skip("needs 12 GB of the card's memory")
    op = MixedOp([nn.Conv2d(1, 1, 3, padding=1), nn.Identity()]).half().to(CUDA)
    weights = torch.tensor([0.5, 0.25], device=CUDA)
    large = torch.zeros(2**32 + 2**10, dtype=torch.float16, device=CUDA)
    with torch.no_grad():
        for stride, serves in ((2**31 // 7 + 1, False), (2**20, True)):
            x = torch.as_strided(large, (2, 1, 8, 9), (2**31, 1, stride, 1))
            x.normal_()
            y = op(x, weights)
            assert (op._prepared.share(x, op._prepared.all, 1)[0] is not None) is serves
            dense = x.contiguous()
            expected = 0.5 * op.ops[0](dense) + 0.25 * dense
            torch.testing.assert_close(y, expected, rtol=2**-8, atol=2**-8)


def test_two_cards():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    case = OTHERS["hinas prelu"]
    expected = exact(case, torch.float32)
    for device in (torch.device("cuda", 1), torch.device("cuda", 0)):  # while the first one is current
        op = build(MixedOp, case, torch.float32, device)
        found = outcome(op, case, tensors(op, case, torch.float32, device))
        assert found["y"].device == device
        assert_close(found, expected, TOLERANCES[torch.float32])
