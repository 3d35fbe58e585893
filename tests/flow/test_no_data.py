"""What conversion does about observers that saw nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pt2q import convert_pt2e, prepare_pt2e
from pt2q.errors import NoDataError, NoDataWarning
from pt2q.ir.graph import dump
from pt2q.ir.module import QuantGraphModule
from pt2q.quantizers import XNNPACKQuantizer


class TwoRoads(nn.Module):
    """Its second road is never taken by the data at hand."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.first(x), self.second(y)


def prepared() -> tuple[QuantGraphModule, torch.Tensor]:
    x = torch.randn(2, 4)
    program = torch.export.export(
        TwoRoads().eval(),
        (x, torch.randn(2, 4)),
        dynamic_shapes=(None, {0: torch.export.Dim("n", max=9)}),
    )
    model = prepare_pt2e(program, XNNPACKQuantizer())
    model(x, torch.empty(0, 4))
    return model, x


def test_by_default_it_is_an_error_that_names_them() -> None:
    model, _ = prepared()
    with pytest.raises(NoDataError, match=r"no data was observed at y, linear_1"):
        convert_pt2e(model)


def test_on_request_they_stay_in_float_with_a_warning() -> None:
    model, x = prepared()
    with pytest.warns(NoDataWarning, match=r"no data was observed at y, linear_1: left in float"):
        converted = convert_pt2e(model, on_no_data="warn")
    text = dump(converted)
    assert text.count("quantize_per_tensor.default(%x") == 1
    assert "quantize_per_tensor.default(%y" not in text
    _, second = converted(x, x)
    weight, bias = model.get_parameter("second.weight"), model.get_parameter("second.bias")
    step = weight.abs().amax(1, keepdim=True) / 127
    rounded = (weight / step).round() * step  # the weight was seen, and is quantized
    torch.testing.assert_close(second, x @ rounded.T + bias)


def test_other_values_are_refused() -> None:
    model, _ = prepared()
    with pytest.raises(ValueError, match="on_no_data must be 'error' or 'warn', found 'ignore'"):
        convert_pt2e(model, on_no_data="ignore")  # type: ignore[arg-type]
