"""Fixed layers that are computed again: the same numbers, less held, statistics that move once."""

import copy

import pytest
import torch
from torch import nn

from srnas_fast.metrics import LiveMemory
from srnas_fast.mixed.recomputed import recomputed


def layers():
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, 3, padding=1)
    return nn.Sequential(conv, nn.BatchNorm2d(8), nn.LeakyReLU(0.2, inplace=True), nn.Conv2d(8, 4, 1)).double()


@pytest.mark.parametrize("training", [True, False])
def test_the_numbers_of_the_module(training):
    plain, again = layers().train(training), layers().train(training)
    x = torch.rand(2, 4, 9, 11, dtype=torch.float64)
    results = []
    for run in (plain, lambda x: recomputed(again, x)):
        given = x.clone().requires_grad_()
        for _ in range(2):
            y = run(given)
            y.square().sum().backward()
        results.append((y.detach(), given.grad))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    for (name, value), other in zip(plain.state_dict().items(), again.state_dict().values(), strict=True):
        torch.testing.assert_close(other, value, rtol=0, atol=0, msg=name)
    for a, b in zip(plain.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=0, atol=0)
    assert again[1].num_batches_tracked == 2 * training
    assert dict(again.named_buffers()).keys() == dict(plain.named_buffers()).keys()


def test_it_holds_nothing_but_the_input():
    net, x = layers().float(), torch.rand(2, 4, 64, 64)
    with LiveMemory() as memory:
        y = recomputed(net, x)
        assert memory.held() < y.nbytes + 4096
        y.sum().backward()


def test_frozen_parameters_and_no_graph():
    net, x = layers(), torch.rand(2, 4, 9, 11, dtype=torch.float64)
    with torch.no_grad():
        assert not recomputed(net, x).requires_grad
    expected = copy.deepcopy(net).requires_grad_(False)
    x.requires_grad_()
    (right,) = torch.autograd.grad(expected(x).square().sum(), x)
    net.requires_grad_(False)
    (found,) = torch.autograd.grad(recomputed(net, x).square().sum(), x)
    torch.testing.assert_close(found, right, rtol=0, atol=0)


def test_under_autocast():
    gradients, x = [], torch.rand(2, 4, 9, 11)
    for run in (lambda net, x: net(x), recomputed):
        net = layers().float()
        with torch.autocast("cpu", torch.bfloat16):
            y = run(net, x)
        y.float().sum().backward()
        gradients.append(net[0].weight.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_a_compiler_sees_the_module_itself():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    x = torch.rand(2, 1, 8, 8)
    compiled = torch.compile(lambda x: recomputed(net, x), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), net(x))
