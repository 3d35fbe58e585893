"""Shared, tied and written weights under batch norms."""

from __future__ import annotations

import torch
from support.batch_norms import assert_folds, fold, imported, reasons
from support.settling import settled
from torch import nn

from pt2q.ir.graph import dump
from pt2q.passes import FoldConvBatchNorm


def assert_stays(model: nn.Module, x: torch.Tensor, reason: str) -> None:
    graph = imported(model, x)
    before = dump(graph)
    fold(graph)
    assert dump(graph) == before
    assert reason in reasons(graph)


class SharedWeight(nn.Module):
    """One convolution under two batch norms, and once without."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.one, self.other = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one(self.conv(x)) + 2 * self.other(self.conv(x)) + 3 * self.conv(x)


def test_shared_weight_is_folded_into_copies() -> None:
    model = settled(SharedWeight())
    graph = assert_folds(model, torch.randn(2, 3, 6, 6))
    assert torch.equal(graph.conv.weight, model.conv.weight)
    assert sorted(dict(graph.named_parameters())) == [
        "conv.bias",
        "conv.bias_1",
        "conv.bias_2",
        "conv.weight",
        "conv.weight_1",
        "conv.weight_2",
    ]


def test_shared_batch_norm_is_folded_into_each() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(2))
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for conv in self.convs:
                x = self.bn(conv(x))
            return x

    assert_folds(settled(Model()), torch.randn(2, 3, 4, 4))


def test_tied_tensors_stay_tied_elsewhere() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(3, 3, 1, bias=False) for _ in range(3))
            self.b.weight = self.c.weight = self.a.weight
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(self.b(self.bn(self.a(x))))

    assert_folds(settled(Model()), torch.randn(2, 3, 4, 4))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.bn(y) + y


class Computed(Twice):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(torch.conv2d(x, self.conv.weight.tanh()))


class Mutated(Twice):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("w", torch.randn(4, 3, 3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn(torch.conv2d(x, self.w))
        self.w.mul_(0.5)
        return y


def test_what_is_not_the_same_function_stays() -> None:
    image = torch.randn(2, 3, 6, 6)
    assert_stays(settled(Twice()), image, "is also read by add")
    assert_stays(settled(Computed()), image, "is computed by tanh")
    assert_stays(settled(Mutated()), image, "written in the forward pass")
    assert_stays(settled(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3))), image, "not a convolution")
    no_stats = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    assert_stays(settled(no_stats), image, "no running statistics")
    training = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert_stays(training.train(), image, "training mode")
    sequence = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(3))
    assert_stays(settled(sequence), torch.randn(2, 3, 5), "dimension")
    unbatched = nn.Sequential(nn.Conv1d(3, 4, 1), nn.BatchNorm1d(6))
    assert_stays(settled(unbatched), torch.randn(3, 6), "dimension")


def test_numbers_that_overflow_stay() -> None:
    model = settled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=0.0)))
    model[1].running_var[1] = 0.0
    assert_stays(model, torch.randn(2, 3, 6, 6), "not be finite")


def test_nothing_to_do() -> None:
    graph = imported(nn.Conv2d(3, 4, 3).eval(), torch.randn(2, 3, 6, 6))
    assert FoldConvBatchNorm()(graph) is False
