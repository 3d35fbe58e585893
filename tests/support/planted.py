"""Small networks in which one thing is wrong that an algorithm is to mend, and data for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pt2q import QuantGraphModule, Quantizer, convert_pt2e, prepare_pt2e, sqnr


class FeedForward(nn.Module):
    """A layer norm with a few channels much larger, which the first weight makes up for."""

    def __init__(self, width: int = 64, factor: float = 40.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        with torch.no_grad():
            self.norm.weight[[3, 17, 40]] *= factor
            self.up.weight[:, [3, 17, 40]] /= factor

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(self.norm(x))))


class UnequalConvolutions(nn.Sequential):
    """Three convolutions whose channels lie ``spread`` apart in the weights between them."""

    def __init__(self, spread: float = 300.0, width: int = 16) -> None:
        super().__init__(
            nn.Conv2d(8, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 8, 3, padding=1),
        )
        exponents = torch.linspace(-0.5, 0.5, width)[torch.randperm(width)]
        factor = spread**exponents
        with torch.no_grad():
            for one, other in ((self[0], self[2]), (self[2], self[4])):
                one.weight.mul_(factor[:, None, None, None])
                one.bias.mul_(factor)
                other.weight.div_(factor[:, None, None])


class TwoLinears(nn.Sequential):
    def __init__(self, width: int = 256) -> None:
        super().__init__(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


def correlated(batches: int, rows: int = 64, width: int = 256, rank: int = 32) -> list[Any]:
    """Inputs that lie close to a plane of few dimensions."""
    mix = torch.randn(width, rank)

    def draw() -> Tensor:
        return torch.randn(rows, rank) @ mix.t() * 0.3 + 0.1 * torch.randn(rows, width)

    return [(draw(),) for _ in range(batches)]


def calibrated(network: nn.Module, quantizer: Quantizer, batches: list[Any]) -> QuantGraphModule:
    """Prepared and calibrated."""
    prepared = prepare_pt2e(torch.export.export(network.eval(), batches[0]), quantizer)
    with torch.no_grad():
        for batch in batches:
            prepared(*batch)
    return prepared


def quality(network: nn.Module, prepared: QuantGraphModule, batches: list[Any]) -> float:
    """Signal to noise of the converted model over some batches, in dB."""
    converted = convert_pt2e(prepared)
    with torch.no_grad():
        pairs = [(network(*batch).flatten(), converted(*batch).flatten()) for batch in batches]
    return float(sqnr(torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs])))
