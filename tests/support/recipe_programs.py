"""A network with every kind of layer a recipe selects, quantized and reported."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pt2q
from pt2q.quantizers import (
    Report,
    TableQuantizer,
)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 16)
        self.down = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.relu(self.up(x)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.blocks = nn.Sequential(Block(), Block())
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 4)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.conv(image)).mean((2, 3))
        return self.head(torch.sin(self.norm(self.blocks(x))))


def quantized(program: Any, quantizer: TableQuantizer) -> tuple[Report, Any]:
    prepared = pt2q.prepare_pt2e(program, quantizer)
    for seed in range(3):
        x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        prepared(x)
    return quantizer.report(), prepared
