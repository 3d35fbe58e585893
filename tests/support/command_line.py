"""Models for the command line, and what it prints when it fails."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Run = Callable[..., tuple[int, str, str]]


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, image: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool2d(F.relu(self.conv(image)), 1)
        return self.head(torch.flatten(pooled, 1))


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)

    def forward(self, x: Tensor, scale: float, *, mask: Tensor) -> tuple[Tensor, Tensor]:
        y = self.linear(x) * scale
        return y * mask, y


def fails(result: tuple[int, str, str], code: int, pattern: str) -> None:
    """One readable line on standard error, nothing on standard output."""
    assert result[0] == code
    assert result[1] == ""
    assert result[2].startswith("pt2q: ")
    assert result[2].count("\n") == 1, result[2]
    assert re.search(pattern, result[2]), result[2]
