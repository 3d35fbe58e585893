"""Models of a few layers, each with something that the flow must get right."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ConvReluAddCat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.one(x))
        z = self.two(y)
        return torch.cat([y + z, z], 1)


class TwoLayers(nn.Module):
    """Two linear layers, each a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x))


class Tied(nn.Module):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(width, width), nn.Linear(width, width)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.relu(self.one(x)))


class Everything(nn.Module):
    """A batch norm, a tied weight, a computed weight and a buffer that is written."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
        self.tied, self.computed = Tied(4), nn.Parameter(torch.randn(4, 4))
        self.register_buffer("state", torch.zeros(4))

    state: Tensor

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x)).relu().mean((2, 3))
        self.state.mul_(0.5)
        self.state.add_(y.mean(0))
        return torch.nn.functional.linear(self.tied(y) + self.state, self.computed.t())


class TwoLinears(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.relu(self.one(x)))
