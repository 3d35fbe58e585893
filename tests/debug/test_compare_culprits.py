"""Who is to blame: planted faults are found at the layer that has them."""

from __future__ import annotations

import torch
from support.comparing import Mlp, build, convert
from torch import Tensor, nn

from pt2q.debug import (
    compare,
)
from pt2q.quantizers import get_symmetric_quantization_config

PER_TENSOR = get_symmetric_quantization_config(is_per_channel=False)


def test_a_layer_with_an_outlier_channel_is_the_culprit() -> None:
    def planted() -> nn.Module:
        model = Mlp(6)
        with torch.no_grad():
            model.layers[2].weight[5] *= 200  # one scale for all channels leaves them few levels
            model.layers[3].weight[:, 5] /= 200
        return model

    _, program, inputs = build(planted, 32, 16)
    per_tensor = compare(program, convert(program, inputs, PER_TENSOR), inputs)
    worst = per_tensor.worst(1).rows[0]
    assert worst.node in ("linear_2", "linear_3") and worst.module in ("layers.2", "layers.3")
    weights = {row.module: row.weights[0].error.sqnr for row in per_tensor if row.weights}
    assert min(weights, key=weights.__getitem__) in ("layers.2", "layers.3")


def test_victims_are_not_culprits() -> None:
    def planted() -> nn.Module:
        model = Mlp(6)
        with torch.no_grad():
            model.layers[1].weight[:, 3] *= 100  # an input channel: the output is alike
            model.layers[0].weight[3] = 0
            model.layers[0].bias[3] = 0.01
        return model

    _, program, inputs = build(planted, 32, 16)
    report = compare(program, convert(program, inputs, PER_TENSOR), inputs)
    assert report.worst(1).rows[0].node == "linear_1"
    culprit = report["linear_1"]
    others = [row for row in report if row.node.startswith("linear") and row is not culprit]
    assert all(row.local.sqnr > culprit.local.sqnr + 10 for row in others)
    after = [row for row in others if row.node > "linear_1"]
    assert len(after) == 4 and all(row.total.sqnr < row.local.sqnr - 20 for row in after)


def test_rounding_an_activation_badly_counts_for_who_made_it() -> None:
    class Outlier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(16, 16) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.c(self.b(y).relu())

    def planted() -> nn.Module:
        model = Outlier()
        with torch.no_grad():
            model.a.bias[0] = 500.0
            model.b.weight[:, 0] = 0
        return model

    _, program, inputs = build(planted, 32, 16)
    report = compare(program, convert(program, inputs), inputs)
    assert report["linear"].roundings[0].levels < 0.2
    # What is left of the other channels of its value is seen by its reader, exactly.
    assert report["linear_1"].total.sqnr < 25 < 35 < report["linear_1"].local.sqnr
