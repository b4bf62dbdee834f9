"""Live tensor memory against byte counts made by hand."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from srnas_fast.metrics import LiveMemory

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]
N = 1000  # float32 values: 4000 bytes
U = 4 * N


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


def test_a_result_counts_and_its_inputs_do_not(device):
    a, b = torch.ones(N, device=device), torch.ones(N, device=device)
    with LiveMemory() as memory:
        y = a * b
        assert (memory.live, memory.peak) == (U, U)
        del y
        assert (memory.live, memory.peak) == (0, U)


def test_the_graph_keeps_operands_alive(device):
    a = torch.ones(N, device=device, requires_grad=True)
    with LiveMemory() as memory:
        y = (a + 1) * (a + 2)  # the product saves both sums
        assert memory.live == 3 * U
        y = y.sum()  # the sum saves nothing: the product itself goes
        assert memory.live == 2 * U + 4
        del y
        assert memory.live == 0


def test_a_chain_of_sigmoids_saves_each_output(device):
    x = torch.zeros(N, device=device, requires_grad=True)
    with LiveMemory() as memory:
        y = x
        for _ in range(5):
            y = y.sigmoid()
        assert memory.held() == 5 * U
        y = y.sum()
        assert memory.held() == 5 * U + 4
        y.backward()
        assert memory.held() == U + 4  # the gradient and the sum
        x.grad = None
        assert memory.live == 4


def test_relu_in_place_and_views_take_nothing(device):
    with LiveMemory() as memory:
        y = torch.zeros(10, 100, device=device)
        views = y[2:], y.t(), y.view(-1), y.reshape(100, 10), y.detach(), y.expand(7, 10, 100)
        y.relu_().add_(1).clamp_(0, 1)
        assert (memory.live, memory.peak) == (U, U)
        del y
        assert memory.live == U  # any view keeps the whole storage
        del views
        assert memory.live == 0


def test_a_small_view_keeps_the_whole_storage():
    with LiveMemory() as memory:
        one = torch.zeros(N)[:1]
        assert memory.live == U
        one = one.clone()
        assert memory.live == 4
    del one


def test_tensors_from_before_count_nothing():
    old = torch.zeros(N)
    with LiveMemory() as memory:
        old.add_(1).mul_(2)
        part = old[:10]
        assert (memory.live, memory.peak) == (0, 0)
        del old, part
        gc.collect()
        assert (memory.live, memory.peak) == (0, 0)  # freeing it inside is no credit


def test_peak_sees_a_temporary_and_can_start_again():
    x = torch.zeros(N)
    with LiveMemory() as memory:
        y = (x + 1).repeat(3) + 1  # x + 1 is alive beside its repetition, then two of three
        assert (memory.live, memory.peak) == (3 * U, 6 * U)
        memory.reset_peak()
        assert memory.peak == 3 * U
        z = y.double()  # 6 U
        assert (memory.live, memory.peak) == (9 * U, 9 * U)
        del y, z


def test_resizing_counts_what_was_added():
    old, target = torch.zeros(N), torch.empty(0)
    original = torch.UntypedStorage.resize_
    with LiveMemory() as memory:
        torch.add(old, 1, out=target)  # from 0 to 4000 bytes, an older tensor object
        assert memory.live == U
        old.resize_(3 * N)
        assert memory.live == 3 * U
        target.untyped_storage().resize_(0)  # passes no operator
        assert memory.live == 2 * U
        target.untyped_storage().resize_(U)
        assert memory.live == 3 * U
    assert torch.UntypedStorage.resize_ is original


def test_tensors_made_from_python_values():
    with LiveMemory() as memory:
        a = torch.tensor([1.0] * N)
        assert memory.live == U
        b = torch.zeros(0).set_(a)
        assert memory.live == U  # the same storage
        del a, b
        assert memory.live == 0


def test_another_name_of_an_older_storage_counts_nothing():
    old = torch.zeros(N)
    storage = old.untyped_storage()
    with LiveMemory() as memory:
        view = torch.empty(0).set_(storage, 0, (N,), (1,))
        other = torch.empty(0)
        other.data = old
        assert memory.live == 0
        del view, other
        assert memory.live == 0


def test_freed_after_the_block():
    with LiveMemory() as memory:
        y = torch.zeros(N)
    later = torch.zeros(N)
    assert memory.live == U
    del y, later
    assert memory.live == 0


def test_reference_cycles_are_live_until_collected():
    gc.disable()
    try:
        with LiveMemory() as memory:
            ring = [torch.zeros(N)]
            ring.append(ring)
            del ring
            assert memory.live == U
            assert memory.held() == 0
    finally:
        gc.enable()


def test_a_custom_function_is_seen_from_inside_in_both_directions(device):
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            temporary = x.repeat(4)  # 4 U beside nothing else
            del temporary
            return x * x

        @staticmethod
        def backward(ctx, dy):
            (x,) = ctx.saved_tensors
            temporary = x.repeat(7)  # 7 U beside dy and y
            del temporary
            return 2 * x * dy

    x = torch.ones(N, device=device, requires_grad=True)
    with LiveMemory() as memory:
        y = Square.apply(x)
        assert (memory.live, memory.peak) == (U, 4 * U)
        memory.reset_peak()
        dy = torch.ones_like(y)
        y.backward(dy)
        assert memory.peak == 9 * U
        assert memory.held() == 3 * U  # y, dy, x.grad


def conv_bn_relu(width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())


def test_convolution_batch_norm_relu(device):
    net = conv_bn_relu(6).to(device)
    x = torch.randn(2, 6, 8, 8, device=device)
    unit = 2 * 6 * 64 * 4
    with LiveMemory() as memory:
        y = net(x)
        # The convolution's output (saved by BN), ReLU's, 6 means and 6 deviations; BN's output is freed.
        # cuDNN's BN may keep a reserve on top.
        assert 2 * unit + 2 * 6 * 4 <= memory.held() < 2.5 * unit
        if device == "cpu":
            assert memory.live == 2 * unit + 2 * 6 * 4
            assert memory.peak == 3 * unit + 2 * 6 * 4
        y.sum().backward()
        del y
        gradients = sum(p.grad.numel() * 4 for p in net.parameters())
        assert memory.held() == gradients == (6 * 6 * 9 + 12) * 4


def test_checkpoint_holds_less_than_eager(device):
    blocks = [conv_bn_relu(4).to(device) for _ in range(3)]
    x = torch.randn(1, 4, 16, 16, device=device, requires_grad=True)
    unit = 4 * 256 * 4
    held = {}
    for name in ("eager", "checkpoint"):
        with LiveMemory() as memory:
            y = x
            for block in blocks:
                y = block(y) if name == "eager" else checkpoint(block, y, use_reentrant=False)
            held[name] = memory.held()
            y.sum().backward()
            del y
    assert held["checkpoint"] < 3.5 * unit  # the outputs of three blocks, and random states
    assert held["eager"] >= 6 * unit


def test_nothing_is_left_behind():
    net = conv_bn_relu(4)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x = torch.randn(1, 4, 16, 16)
    with LiveMemory() as memory:
        for _ in range(3):
            net(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            assert memory.held() == 0
    assert memory.peak > 0


def test_two_trackers_at_once_agree():
    with LiveMemory() as outer, LiveMemory() as inner:
        y = torch.zeros(N) + 1
        y.untyped_storage().resize_(2 * U)
        assert (outer.live, outer.peak) == (inner.live, inner.peak) == (2 * U, 2 * U)


def test_the_weak_reference_outlives_its_python_object():
    """The premise: a storage's Python object lives as long as the storage, even if only a graph holds it."""
    ends = []
    x = torch.zeros(N, requires_grad=True)
    y = x.exp()
    reference = weakref.ref(y.untyped_storage(), ends.append)
    y = y.sum()
    gc.collect()
    assert reference() is not None and not ends
    y.backward()
    assert reference() is None and len(ends) == 1


def test_sparse_tensors_are_passed_by():
    with LiveMemory() as memory:
        sparse = torch.eye(4).to_sparse()
        assert (sparse.to_dense() == torch.eye(4)).all()
    assert memory.peak >= 64


@pytest.mark.parametrize("raising", [True])
def test_an_exception_ends_the_tracking(raising):
    memory = LiveMemory()
    with pytest.raises(ZeroDivisionError), memory:
        1 / (1 - raising)
    torch.zeros(N)
    assert (memory.live, memory.peak) == (0, 0)
