"""Control flow, state, and values that are written into."""

from __future__ import annotations

import copy

import pytest
import torch
from support.comparing import build, convert
from support.control_flow_models import MODELS, WhileLoop, exported
from support.control_flow_models import inputs as flow_inputs
from support.decoder import Decoder, DecoderConfig
from torch import Tensor, nn
from torch.nn import functional as F

from pt2q import convert_pt2e, prepare_pt2e, sqnr
from pt2q.debug import (
    compare,
)
from pt2q.quantizers import XNNPACKQuantizer, get_symmetric_quantization_config

PER_TENSOR = get_symmetric_quantization_config(is_per_channel=False)


@pytest.mark.parametrize("kind", MODELS)
def test_bodies_of_control_flow(kind: type[nn.Module]) -> None:
    program = exported(kind)
    prepared = prepare_pt2e(program, XNNPACKQuantizer())
    for x in flow_inputs():
        prepared(x)
    converted = convert_pt2e(prepared)
    report = compare(program, converted, flow_inputs())
    inside = [row for row in report if "." in row.node]
    assert any(row.weights for row in inside) and report.unmatched == () and report.notes == ()
    with torch.no_grad():
        outputs = [torch.cat([m(x) for x in flow_inputs()]) for m in (program.module(), converted)]
    assert report.outputs[0].sqnr == pytest.approx(float(sqnr(*outputs)), abs=1e-3)
    assert all(row.local is not None and row.local.rank > 20 for row in inside if row.calls)


def test_statistics_are_over_all_calls_of_a_body() -> None:
    program = exported(WhileLoop)
    model = copy.deepcopy(program.module())
    prepared = prepare_pt2e(program, XNNPACKQuantizer())
    for x in flow_inputs():
        prepared(x)
    report = compare(program, convert_pt2e(prepared), flow_inputs())
    row = report["while_loop_body_graph_0.linear"]
    assert row.calls == 3 * len(flow_inputs()) and row.total.count == 3 * 4 * 48
    state = model.state_dict()
    weight, bias = state["a.weight"], state["a.bias"]
    energy = 0.0
    for x in flow_inputs():
        for _ in range(3):
            y = F.linear(x, weight, bias)
            energy += float(y.double().square().sum())
            x = y.tanh()
    noise = energy / 10 ** (row.total.sqnr / 10)
    assert 0 < noise < energy / 100
    assert report["while_loop_cond_graph_0.lt"].calls == 4 * len(flow_inputs())
    assert len(row.weights) == 1 and row.weights[0].error.sqnr > 40


def test_a_decision_that_falls_differently_is_told() -> None:
    class Threshold(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return torch.cond(y.sum() > 0, lambda y: self.b(y), lambda y: y * 2, (y,))

    torch.manual_seed(0)
    model = Threshold().eval()
    with torch.no_grad():
        model.a.weight[:, 0] = 30.0  # the quantized sum is far off
    x = torch.randn(2, 8)
    program = torch.export.export(model, (x,))
    converted = convert(program, [x, -x, x + 1, x - 1], PER_TENSOR)
    found = [torch.randn(2, 8) for _ in range(200)]
    found = [x - (model.a(x).sum() / 16 / 30) * F.one_hot(torch.zeros(2).long(), 8) for x in found]
    report = compare(program, converted, found)
    assert any("a decision fell differently" in note for note in report.notes)
    # The local comparison goes the float model's way.
    assert report["true_graph_0.linear"].local.count == 16 * report["true_graph_0.linear"].calls


def test_state_is_the_same_for_both_and_left_alone() -> None:
    config = DecoderConfig(dim=32, hidden=48, layers=1, length=16)
    torch.manual_seed(0)
    model = Decoder(config).eval()
    steps = [(torch.tensor([[token]]), torch.tensor([at])) for at, token in enumerate((5, 9, 2, 7))]
    program = torch.export.export(model, steps[0])
    prepared = prepare_pt2e(program, XNNPACKQuantizer())
    for step in steps:
        prepared(*step)
    converted = convert_pt2e(prepared)
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in (prepared, converted)]
    report = compare(program, converted, steps)
    again = compare(program, converted, steps)
    assert str(report) == str(again)
    for model_, state in zip((prepared, converted), before, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in model_.state_dict().items())
    module = program.module()
    with torch.no_grad():
        pairs = [(module(*step), converted(*step)) for step in steps]
    expected = sqnr(*(torch.cat(column) for column in zip(*pairs, strict=True)))
    assert report.outputs[0].sqnr == pytest.approx(float(expected), abs=1e-3)
    # The prepared model has moved its cache; compared, it starts where the float model does.
    exact = compare(program, prepared, steps)
    assert exact.outputs[0].sqnr > 100
    assert not any("keeps what it holds" in note for note in report.notes)


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.register_buffer("total", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        view = y[:, :4]
        view.mul_(2)
        self.total.add_(y.sum(0))
        return self.b(y) + self.total


def test_values_that_are_written_into() -> None:
    model, program, inputs = build(InPlace, 4, 8)
    converted = convert(program, inputs)
    report = compare(program, converted, inputs)
    module = program.module()
    with torch.no_grad():
        pairs = [(module(x), converted(x)) for x in inputs]
    expected = sqnr(*(torch.cat(column) for column in zip(*pairs, strict=True)))
    assert report.outputs[0].sqnr == pytest.approx(float(expected), abs=1e-3)
    assert all(row.local.rank > 25 for row in report if row.local is not None)
    plain = torch.cat([F.linear(x, model.a.weight, model.a.bias) for x in inputs])
    signal = float(plain.double().square().sum())  # before it was doubled
    noise = signal / 10 ** (report["linear"].total.sqnr / 10)
    assert noise < signal / 1000
