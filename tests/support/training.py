"""A small network with batches, trained for some steps."""

from __future__ import annotations

import torch
from torch import nn

from pt2q.ir.module import QuantGraphModule

BATCH = (8, 3, 8, 8)


def network(momentum: float = 0.1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8, momentum=momentum),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8, bias=False),
        nn.BatchNorm2d(8, momentum=momentum),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(288, 4),
    )


def batches(number: int, seed: int = 7) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(BATCH, generator=generator) for _ in range(number)]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: list[torch.Tensor]) -> None:
    for i, x in enumerate(data):
        torch.manual_seed(i)  # dropout
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def running(model: QuantGraphModule) -> torch.Tensor:
    names = ("running_mean", "running_var", "num_batches_tracked")
    found = [b.flatten().float() for n, b in model.named_buffers() if n.split(".")[-1] in names]
    return torch.cat(found)
