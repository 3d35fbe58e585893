"""A function over layers as a module, and small images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Apply(nn.Module):
    def __init__(self, fn: Callable[..., Any], *layers: nn.Module) -> None:
        super().__init__()
        self.fn = fn
        self.layers = nn.ModuleList(layers)

    def forward(self, *args: Tensor) -> Any:
        return self.fn(self.layers, *args)


def conv(c_in: int = 4, c_out: int = 4, **kwargs: Any) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, padding=1, **kwargs)


def image(*lead: int) -> Tensor:
    return torch.randn(*(lead or (2, 4)), 8, 8)


class Encoder(nn.Module):
    """A transformer block with the normalization after the additions."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)
        self.up = nn.Linear(8, 16)
        self.down = nn.Linear(16, 8)
        self.norm1 = nn.LayerNorm(8)
        self.norm2 = nn.LayerNorm(8)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = q @ k.transpose(1, 2) + torch.where(mask, 0.0, float("-inf"))
        x = self.norm1(x + F.dropout(self.out(scores.softmax(-1) @ v), 0.1, self.training))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


DRAWN = torch.Generator().manual_seed(0)
SEQUENCE = torch.randn(2, 5, 8, generator=DRAWN), torch.ones(5, 5, dtype=torch.bool).tril()
