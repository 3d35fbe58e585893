"""Other forms of a quantized model: integers, exported anew, dynamic, taken apart."""

from __future__ import annotations

import pytest
import torch
from support.comparing import ConvBn, Mlp, build, convert, hooked
from torch import Tensor, nn
from torch.nn import functional as F

from pt2q import convert_pt2e, prepare_pt2e
from pt2q.debug import (
    compare,
)
from pt2q.quantizers import XNNPACKQuantizer, get_symmetric_quantization_config

DYNAMIC = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)


def test_the_reference_representation() -> None:
    _, program, inputs = build(ConvBn, 4, 3, 8, 8)
    plain = compare(program, convert(program, inputs), inputs)
    converted = convert(program, inputs, use_reference_representation=True)
    report = compare(program, converted, inputs)
    assert report.outputs[0].sqnr == pytest.approx(plain.outputs[0].sqnr, abs=1)
    assert report["relu"].includes == ("conv2d", "batch_norm")
    for node in ("relu", "mean", "linear", "linear_1", "linear_2"):
        assert report[node].total.sqnr == pytest.approx(plain[node].total.sqnr, abs=1.5)
    for node in ("mean", "linear", "linear_1", "linear_2"):
        assert report[node].local.sqnr == pytest.approx(plain[node].local.sqnr, abs=1.5)
    assert "reference representation" in report.notes[0]


@pytest.mark.parametrize("decompose", [False, True])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_model_exported_anew(decompose: bool) -> None:
    _, program, inputs = build(ConvBn, 4, 3, 8, 8)
    converted = convert(program, inputs)
    expected = compare(program, converted, inputs)
    anew = torch.export.export(converted, (inputs[0],))
    report = compare(program, anew.run_decompositions() if decompose else anew, inputs)
    assert [row.node for row in report] == [row.node for row in expected]
    for one, other in zip(report, expected, strict=True):
        assert one.includes == other.includes
        assert one.total.sqnr == pytest.approx(other.total.sqnr, abs=1e-3)
        assert one.local.sqnr == pytest.approx(other.local.sqnr, abs=1e-2)
        pairs = zip(one.weights, other.weights, strict=True)
        assert all(a.error.sqnr == pytest.approx(b.error.sqnr, abs=1e-3) for a, b in pairs)


def test_float_weights_behind_a_quantize() -> None:
    _, program, inputs = build(Mlp, 8, 16)
    stored = compare(program, convert(program, inputs), inputs)
    unfolded = compare(program, convert(program, inputs, fold_quantize=False), inputs)
    for one, other in zip(stored, unfolded, strict=True):
        assert [w.error for w in one.weights] == [w.error for w in other.weights]


def test_dynamic_quantization_belongs_to_the_reader() -> None:
    _, program, inputs = build(Mlp, 8, 16)
    report = compare(program, convert(program, inputs, DYNAMIC), inputs)
    assert {row.node for row in report if row.roundings} == {"linear", "linear_1"}
    (row,) = report["linear"].roundings
    assert row.dynamic and row.of == "x" and row.scale[0] < row.scale[1]
    assert report["relu"].local.is_exact and report["linear"].local.sqnr > 30


def test_operators_that_were_taken_apart() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.out = nn.Linear(16, 16), nn.Linear(16, 16)
            self.rnn = nn.LSTM(16, 16, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            y = F.scaled_dot_product_attention(self.q(x), x, x)
            return self.out(self.rnn(y)[0])

    model, program, inputs = build(Attention, 2, 5, 16)
    quantizer = XNNPACKQuantizer().set_decompositions(attention=True, recurrent=True)
    prepared = prepare_pt2e(program, quantizer)
    for x in inputs:
        prepared(x)
    converted = convert_pt2e(prepared)
    report = compare(program, converted, inputs)
    names = [row.node for row in report]
    assert "scaled_dot_product_attention" in names and "linear_1" in names
    reference = torch.cat(hooked(model, "q", inputs))
    attended = torch.cat(
        [
            F.scaled_dot_product_attention(q, x, x)
            for q, x in zip(reference.split(2), inputs, strict=True)
        ]
    )
    assert report["scaled_dot_product_attention"].total.count == attended.numel()
    assert report["scaled_dot_product_attention"].local.sqnr > 30
    weights = {w.name for row in report for w in row.weights}
    assert {"rnn.weight_ih_l0_quantized", "rnn.weight_hh_l0_quantized"} <= weights
    assert report["linear_1"].local.sqnr > 30


def test_dynamic_shapes_and_keyword_inputs() -> None:
    torch.manual_seed(0)
    model = Mlp().eval()
    shapes = {"x": {0: torch.export.Dim.AUTO}}
    program = torch.export.export(model, (torch.randn(4, 16),), dynamic_shapes=shapes)
    inputs = [torch.randn(n, 16) for n in (2, 7, 3)]
    converted = convert(program, inputs)
    report = compare(program, converted, inputs)
    assert report["linear"].total.count == 12 * 16
    assert compare(program, converted, [{"x": x} for x in inputs]) == report
    assert compare(program, converted, [(x,) for x in inputs]) == report
    assert compare(program, converted, inputs[0]) == compare(program, converted, (inputs[0],))
