"""Batch norms behind quantized layers: what estimating their statistics anew wins."""

from __future__ import annotations

import pytest
import torch
from support.few_bits import few_bits, weights_alone
from support.planted import calibrated, quality
from torch import Tensor, nn

from pt2q.algorithms import BatchNormStatistics


class Before(nn.Module):
    """A norm that follows a sum, so that no convolution takes it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.again, self.head = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.norm(self.conv(x) + self.again(x)).relu())
        return y


@pytest.mark.filterwarnings("ignore::pt2q.errors.BatchNormNotFoldedWarning")
def test_moments_are_given_back() -> None:
    network, batches = Before(), [(torch.rand(4, 4, 8, 8) + 1,) for _ in range(8)]
    with torch.no_grad():
        network.train()
        for batch in batches * 8:
            network(*batch)
    before = {name: value.clone() for name, value in network.eval().state_dict().items()}
    prepared = calibrated(network, weights_alone(few_bits(3)), batches)
    plain = quality(network, prepared, batches)
    (row,) = BatchNormStatistics()(prepared, batches).rows
    assert row.kept and row.after > row.before + 3 and "held-out" in row.reason
    assert quality(network, prepared, batches) > plain + 2
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.filterwarnings("ignore::pt2q.errors.BatchNormNotFoldedWarning")
def test_a_norm_that_moves_is_passed_over() -> None:
    batches = [(torch.rand(4, 4, 8, 8),) for _ in range(4)]
    network = nn.Sequential(
        nn.Conv2d(4, 4, 1), nn.ReLU(), nn.BatchNorm2d(4, track_running_stats=False)
    )
    prepared = calibrated(network, weights_alone(few_bits(4)), batches)
    report = BatchNormStatistics()(prepared, batches)
    assert report.rows == () and "no statistics" in str(report)
