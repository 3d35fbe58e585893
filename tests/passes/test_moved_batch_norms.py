"""Batch norms fold into a layer whose result is flattened, reshaped or transposed first."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support.batch_norms import assert_folds, count, fold, imported
from support.settling import settled
from torch import Tensor, nn

Between = Callable[[Tensor], Tensor]


class Moved(nn.Module):
    """A layer, moves, a batch norm, and the way back."""

    def __init__(self, layer: nn.Module, norm: nn.Module, between: Between) -> None:
        super().__init__()
        self.layer, self.norm, self.between = layer, norm, between

    def forward(self, x: Tensor) -> Tensor:
        found = self.layer(x)
        return self.norm(self.between(found)).reshape_as(found).relu()


X, IMAGE = torch.randn(2, 6, 8), torch.randn(2, 3, 5, 5)


@pytest.mark.parametrize(
    "between",
    [
        lambda y: y.flatten(0, 1),
        lambda y: y.reshape(12, 4).contiguous(),
        lambda y: y.transpose(1, 2),
        lambda y: y.permute(0, 2, 1).unflatten(2, (2, 3)).flatten(2),
        lambda y: y.transpose(1, 2).reshape(2, 4, 3, 2).clone().view(2, 4, 6),
    ],
)
def test_linear(between: Between) -> None:
    rank = between(torch.zeros(2, 6, 4)).dim()
    assert rank in (2, 3)
    assert_folds(settled(Moved(nn.Linear(8, 4), nn.BatchNorm1d(4), between)), X)


def test_convolution() -> None:
    model = Moved(nn.Conv2d(3, 4, 3), nn.BatchNorm1d(4), lambda y: y.flatten(2))
    assert_folds(settled(model), IMAGE)


@pytest.mark.parametrize(
    ("between", "width"),
    [
        (lambda y: y, 6),  # dimension 1 is not the layer's channels
        (lambda y: y.reshape(2, 4, 6), 4),  # as many, and others
        (lambda y: y.reshape(24, 2), 2),
        (lambda y: y.relu().flatten(0, 1), 4),
    ],
)
def test_others_stay(between: Between, width: int) -> None:
    model = settled(Moved(nn.Linear(8, 4), nn.BatchNorm1d(width), between))
    module = imported(model, X)
    fold(module)
    assert count(module) == 1
    torch.testing.assert_close(module(X), model(X))


def test_a_value_that_others_read_keeps_its_batch_norm() -> None:
    class Twice(Moved):
        def forward(self, x: Tensor) -> Tensor:
            found = self.layer(x)
            return self.norm(found.flatten(0, 1)).reshape_as(found) + found

    model = settled(Twice(nn.Linear(8, 4), nn.BatchNorm1d(4), lambda y: y))
    module = imported(model, X)
    fold(module)
    assert count(module) == 1
