"""The CIFAR supernets of DARTS and PC-DARTS, as a user of this library would bring them: no srnas_fast in here.

Written after the papers (arXiv 1806.09055 and 1907.05737) and the sizes of the published searches.
"""

import torch
import torch.nn.functional as F
from torch import nn


class Zero(nn.Module):
    def __init__(self, stride):
        super().__init__()
        self.stride = stride

    def forward(self, x):
        if self.stride == 1:
            return x.mul(0.0)
        return x[:, :, :: self.stride, :: self.stride].mul(0.0)


class Identity(nn.Module):
    def forward(self, x):
        return x


class FactorizedReduce(nn.Module):
    """Half the height and width: two 1x1 convolutions that look at different pixels."""

    def __init__(self, inputs, outputs, affine):
        super().__init__()
        self.relu = nn.ReLU(inplace=False)
        self.conv_1 = nn.Conv2d(inputs, outputs // 2, 1, stride=2, bias=False)
        self.conv_2 = nn.Conv2d(inputs, outputs // 2, 1, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(outputs, affine=affine)

    def forward(self, x):
        x = self.relu(x)
        return self.bn(torch.cat([self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])], dim=1))


class ReLUConvBN(nn.Module):
    def __init__(self, inputs, outputs, affine):
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(inplace=False), nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs, affine=affine)
        )

    def forward(self, x):
        return self.op(x)


def depthwise_block(channels, size, stride, dilation, affine):
    return [
        nn.ReLU(inplace=False),
        nn.Conv2d(channels, channels, size, stride, dilation * (size - 1) // 2, dilation, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels, affine=affine),
    ]


class DilConv(nn.Module):
    def __init__(self, channels, size, stride, affine):
        super().__init__()
        self.op = nn.Sequential(*depthwise_block(channels, size, stride, 2, affine))

    def forward(self, x):
        return self.op(x)


class SepConv(nn.Module):
    def __init__(self, channels, size, stride, affine):
        super().__init__()
        self.op = nn.Sequential(
            *depthwise_block(channels, size, stride, 1, affine), *depthwise_block(channels, size, 1, 1, affine)
        )

    def forward(self, x):
        return self.op(x)


OPS = {
    "none": lambda c, stride: Zero(stride),
    "max_pool_3x3": lambda c, stride: nn.Sequential(
        nn.MaxPool2d(3, stride=stride, padding=1), nn.BatchNorm2d(c, affine=False)
    ),
    "avg_pool_3x3": lambda c, stride: nn.Sequential(
        nn.AvgPool2d(3, stride=stride, padding=1, count_include_pad=False), nn.BatchNorm2d(c, affine=False)
    ),
    "skip_connect": lambda c, stride: Identity() if stride == 1 else FactorizedReduce(c, c, affine=False),
    "sep_conv_3x3": lambda c, stride: SepConv(c, 3, stride, affine=False),
    "sep_conv_5x5": lambda c, stride: SepConv(c, 5, stride, affine=False),
    "dil_conv_3x3": lambda c, stride: DilConv(c, 3, stride, affine=False),
    "dil_conv_5x5": lambda c, stride: DilConv(c, 5, stride, affine=False),
}


class MixedOp(nn.Module):
    def __init__(self, channels, stride):
        super().__init__()
        self._ops = nn.ModuleList(make(channels, stride) for make in OPS.values())

    def forward(self, x, weights):
        return sum(w * op(x) for w, op in zip(weights, self._ops, strict=True))


def channel_shuffle(x, groups):
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class PartialMixedOp(nn.Module):
    K = 4

    def __init__(self, channels, stride):
        super().__init__()
        self._ops = nn.ModuleList(make(channels // self.K, stride) for make in OPS.values())
        self.mp = nn.MaxPool2d(2, 2)

    def forward(self, x, weights):
        part = x.shape[1] // self.K
        seen, passed = x[:, :part], x[:, part:]
        y = sum(w * op(seen) for w, op in zip(weights, self._ops, strict=True))
        if y.shape[2] != x.shape[2]:
            passed = self.mp(passed)
        return channel_shuffle(torch.cat([y, passed], dim=1), self.K)


class Cell(nn.Module):
    def __init__(self, mixed_op, nodes, before_previous, previous, channels, reduction, reduced):
        super().__init__()
        self.nodes = nodes
        self.preprocess0 = (FactorizedReduce if reduced else ReLUConvBN)(before_previous, channels, affine=False)
        self.preprocess1 = ReLUConvBN(previous, channels, affine=False)
        self._ops = nn.ModuleList(
            mixed_op(channels, 2 if reduction and j < 2 else 1) for i in range(nodes) for j in range(2 + i)
        )

    def forward(self, s0, s1, weights, edges=None):
        states, offset = [self.preprocess0(s0), self.preprocess1(s1)], 0
        for _ in range(self.nodes):
            total = 0
            for j, state in enumerate(states):
                part = self._ops[offset + j](state, weights[offset + j])
                total = total + (part if edges is None else edges[offset + j] * part)
            offset += len(states)
            states.append(total)
        return torch.cat(states[-self.nodes :], dim=1)


class Network(nn.Module):
    """8 cells of 4 nodes, 16 channels, reductions at a third and two thirds; with ``PartialMixedOp`` PC-DARTS's."""

    def __init__(self, mixed_op=MixedOp, channels=16, layers=8, nodes=4, classes=10, multiplier=3):
        super().__init__()
        self.nodes = nodes
        wide = multiplier * channels
        self.stem = nn.Sequential(nn.Conv2d(3, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide))
        self.cells, reduced = nn.ModuleList(), False
        before_previous, previous = wide, wide
        for i in range(layers):
            reduction = i in (layers // 3, 2 * layers // 3)
            channels *= 2 if reduction else 1
            self.cells.append(Cell(mixed_op, nodes, before_previous, previous, channels, reduction, reduced))
            self.cells[-1].reduction = reduced = reduction
            before_previous, previous = previous, nodes * channels
        self.classifier = nn.Linear(previous, classes)
        edges = sum(2 + i for i in range(nodes))
        self.alphas_normal = nn.Parameter(1e-3 * torch.randn(edges, len(OPS)))
        self.alphas_reduce = nn.Parameter(1e-3 * torch.randn(edges, len(OPS)))
        if mixed_op is PartialMixedOp:
            self.betas_normal = nn.Parameter(1e-3 * torch.randn(edges))
            self.betas_reduce = nn.Parameter(1e-3 * torch.randn(edges))

    def per_node(self, betas):
        return torch.cat([b.softmax(-1) for b in betas.split([2 + i for i in range(self.nodes)])])

    def forward(self, x):
        s0 = s1 = self.stem(x)
        for cell in self.cells:
            alphas = self.alphas_reduce if cell.reduction else self.alphas_normal
            edges = None
            if hasattr(self, "betas_normal"):
                edges = self.per_node(self.betas_reduce if cell.reduction else self.betas_normal)
            s0, s1 = s1, cell(s0, s1, alphas.softmax(-1), edges)
        return self.classifier(F.adaptive_avg_pool2d(s1, 1).flatten(1))
