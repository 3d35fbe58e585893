"""A converted model is for use: it draws nothing, owns what it holds, and was quantized once."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from pt2q import convert_pt2e, prepare_pt2e, sqnr
from pt2q.errors import AlreadyQuantizedWarning, NoDataError, NoDataWarning, TrainingModeWarning
from pt2q.ir.graph import named_tensors
from pt2q.ir.module import QuantGraphModule
from pt2q.ir.storage import storage_of
from pt2q.quantizers import XNNPACKQuantizer


class Drops(nn.Module):
    """Every way to draw random numbers in training."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)
        self.drop, self.alpha, self.slope = nn.Dropout(0.5), nn.AlphaDropout(0.5), nn.RReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.slope(self.alpha(self.drop(self.first(x))))
        y = nn.functional.scaled_dot_product_attention(
            y, y, y, dropout_p=0.5 if self.training else 0.0
        )
        return self.last(y)


def test_dropouts_exported_in_training_are_switched_off_and_said() -> None:
    torch.manual_seed(0)
    x, model = torch.randn(2, 4, 8), Drops().train()
    program = torch.export.export(model, (x,))
    with pytest.warns(TrainingModeWarning, match=r"dropout, .*scaled_dot_product_attention drew"):
        prepared = prepare_pt2e(program, XNNPACKQuantizer())
    torch.testing.assert_close(prepared(x), model.eval()(x), atol=0.2, rtol=0)
    converted = convert_pt2e(prepared)
    assert torch.equal(converted(x), converted(x))
    assert sqnr(model(x), converted(x)) > 20
    prepared.train()
    again = convert_pt2e(prepared)
    assert torch.equal(again(x), converted(x))


def test_a_dropout_of_nothing_is_not_said() -> None:
    x, model = torch.randn(2, 8), nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.0)).train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare_pt2e(torch.export.export(model, (x,)), XNNPACKQuantizer())


class Stays(nn.Module):
    """A bias, a norm, a buffer and two views of one storage that nothing quantizes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.LayerNorm(4)
        self.register_buffer("both", torch.randn(8))
        self.register_buffer("part", self.both[4:])

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x).relu().mean((2, 3))) + self.both[:4] * self.part


def test_a_converted_model_shares_nothing_with_the_float_model() -> None:
    x, model = torch.randn(2, 3, 6, 6), Stays().eval()
    prepared = prepare_pt2e(torch.export.export(model, (x,)), XNNPACKQuantizer())
    prepared(x)
    converted = convert_pt2e(prepared)
    others = {storage_of(t) for t in (*model.state_dict().values(), *prepared.buffers())}
    held = named_tensors(converted)
    assert {"conv.bias", "norm.weight"} <= set(held)
    assert not [name for name, tensor in held.items() if storage_of(tensor) in others]
    assert storage_of(held["both"]) == storage_of(held["part"])
    before = converted(x)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.add_(1)
    assert torch.equal(converted(x), before)


def test_a_program_that_is_quantized_already_is_said() -> None:
    x, model = torch.randn(2, 8), nn.Linear(8, 8).eval()
    prepared = prepare_pt2e(torch.export.export(model, (x,)), XNNPACKQuantizer())
    prepared(x)
    again = torch.export.export(convert_pt2e(prepared), (x,))
    with pytest.warns(AlreadyQuantizedWarning, match=r"holds 5 quantize and dequantize"):
        prepare_pt2e(again, XNNPACKQuantizer())


class SharedRoads(nn.Module):
    """All observers of the second branch are those of the first one, but for its weight's."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cond(x.sum() > 0, lambda x: self.a(x), lambda x: self.b(x), (x,))
        return self.c(y[0] if isinstance(y, tuple) else y)


def _one_road() -> QuantGraphModule:
    program = torch.export.export(SharedRoads().eval(), (torch.ones(2, 8),))
    prepared = prepare_pt2e(program, XNNPACKQuantizer())
    prepared(torch.rand(2, 8))
    return prepared


def test_a_branch_that_calibration_never_took_is_an_error_that_names_it() -> None:
    prepared = _one_road()
    with pytest.raises(NoDataError, match="calibration never ran false_graph_0, of control flow"):
        convert_pt2e(prepared)
    prepared(-torch.rand(2, 8))
    convert_pt2e(prepared)


def test_on_request_that_branch_stays_in_float() -> None:
    prepared = _one_road()
    with pytest.warns(NoDataWarning, match="never ran false_graph_0.*left in float"):
        converted = convert_pt2e(prepared, on_no_data="warn")
    inside = converted.get_submodule("false_graph_0")
    assert isinstance(inside, torch.fx.GraphModule)
    assert "quantized_decomposed" not in inside.code
    assert "quantized_decomposed" in converted.get_submodule("true_graph_0").code  # type: ignore[operator]
    converted(-torch.rand(2, 8))
