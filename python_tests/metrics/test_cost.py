"""Parameters and Multi-Adds counted by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from srnas_fast.metrics import count_parameters, multi_adds


def test_parameters():
    shared = nn.Conv2d(4, 4, 3, bias=False)
    net = nn.Sequential(nn.Conv2d(1, 4, 5), shared, nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False), shared)
    assert count_parameters(net) == (25 * 4 + 4) + 4 * 4 * 9 + 2 * 4
    assert count_parameters(nn.ReLU()) == 0


def test_frozen_parameters_still_count():
    assert count_parameters(nn.Linear(3, 5).requires_grad_(False)) == 20


class Functional(nn.Module):
    def forward(self, x, kernel):
        return F.conv2d(x, kernel)


@pytest.mark.parametrize(
    ("module", "shapes", "expected"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), [(1, 3, 17, 9)], 3 * 8 * 9 * 17 * 9),
        (nn.Conv2d(3, 8, 3, padding=1), [(5, 3, 17, 9)], 5 * 3 * 8 * 9 * 17 * 9),
        (nn.Conv2d(6, 6, 5, stride=2, padding=2, groups=6), [(1, 6, 9, 9)], 6 * 25 * 5 * 5),
        (nn.Conv2d(4, 4, 3, dilation=2), [(1, 4, 9, 8)], 16 * 9 * 5 * 4),
        (nn.ConvTranspose2d(4, 2, 2, stride=2), [(1, 4, 5, 5)], 4 * 2 * 4 * 25),
        (nn.Linear(7, 11), [(3, 7)], 3 * 7 * 11),
        (nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()), [(1, 4, 5, 5)], 0),
        (Functional(), [(1, 2, 5, 5), (3, 2, 3, 3)], 3 * 2 * 9 * 9),
    ],
)
def test_multi_adds(module, shapes, expected):
    assert multi_adds(module, *(torch.zeros(shape) for shape in shapes)) == expected


def test_counting_leaves_the_module_as_it_was():
    net = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.Sequential(nn.BatchNorm2d(2).eval()))
    net.train()
    net[2].eval()
    before = [m.training for m in net.modules()]
    multi_adds(net, torch.ones(2, 2, 3, 3))
    assert [m.training for m in net.modules()] == before
    assert net[1].num_batches_tracked == 0
    assert net[0].weight.grad is None


def test_modes_come_back_after_an_error():
    net = nn.Sequential(nn.Conv2d(2, 2, 1)).train()
    with pytest.raises(RuntimeError):
        multi_adds(net, torch.ones(1, 3, 4, 4))
    assert net.training and net[0].training
