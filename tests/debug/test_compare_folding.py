"""Folded batch norms, layers called twice, models in training."""

from __future__ import annotations

import copy

import pytest
import torch
from support.comparing import ConvBn, Mlp, build, convert, hooked, run

from pt2q import convert_pt2e, prepare_pt2e, prepare_qat_pt2e, sqnr
from pt2q.debug import (
    compare,
)
from pt2q.quantizers import XNNPACKQuantizer, get_symmetric_quantization_config

QAT = get_symmetric_quantization_config(is_per_channel=True, is_qat=True)


def test_a_folded_convolution_gives_the_value_of_its_batch_norm() -> None:
    model, program, inputs = build(ConvBn, 4, 3, 8, 8)
    converted = convert(program, inputs)
    report = compare(program, converted, inputs)
    row = report["batch_norm"]
    assert row.includes == ("conv2d",) and row.counterpart == "conv2d"
    assert report["conv2d"] is row and report.unmatched == ()
    reference = torch.cat(hooked(model, "bn", inputs))
    value = torch.cat([run(converted, x).seen("conv2d") for x in inputs])
    assert row.total.sqnr == pytest.approx(float(sqnr(reference, value)), abs=1e-6)
    factor = model.bn.weight / torch.sqrt(model.bn.running_var + model.bn.eps)
    folded = model.conv.weight * factor[:, None, None, None]
    weight = converted.conv.weight_quantized * converted.conv.weight_scale[:, None, None, None]
    assert row.weights[0].error.sqnr == pytest.approx(float(sqnr(folded, weight)), abs=1e-3)
    assert min(r.local.sqnr for r in report) > 30


def test_each_call_of_a_layer_has_its_row_and_integers_are_compared_exactly() -> None:
    _, program, inputs = build(ConvBn, 4, 3, 8, 8)
    report = compare(program, convert(program, inputs), inputs)
    rows = [row for row in report if row.module == "twice"]
    assert [row.node for row in rows] == ["linear", "linear_1"]
    assert rows[0].weights[0].error == rows[1].weights[0].error
    assert rows[0].total != rows[1].total
    error = report["argmax"].total
    assert error.differing is not None and error.count == 12
    assert report["argmax"].local.is_exact
    assert len(report.outputs) == 2 and report.outputs[1].differing == error.differing


@pytest.mark.parametrize("fast", [False, True])
def test_models_in_training(fast: bool) -> None:
    _, program, inputs = build(ConvBn, 4, 3, 8, 8)
    prepared = prepare_qat_pt2e(program, XNNPACKQuantizer().set_global(QAT), fast=fast)
    prepared.train()
    optimizer = torch.optim.SGD(prepared.parameters(), 1e-3)
    for x in inputs:
        prepared(x)[0].square().mean().backward()
        optimizer.step()
    state = {k: v.clone() for k, v in prepared.state_dict().items()}
    report = compare(program, prepared, inputs)
    assert all(torch.equal(v, state[k]) for k, v in prepared.state_dict().items())
    assert prepared.training
    # The float model shares the parameters that were trained, not the statistics.
    trained = copy.deepcopy(program.module())
    names = dict(trained.named_buffers())
    for name, value in prepared.named_buffers():
        if name in names:
            names[name].copy_(value)
    report, after = (compare(trained, m, inputs) for m in (prepared, convert_pt2e(prepared)))
    assert report.unmatched == after.unmatched == ()
    assert [r.node for r in after] == [r.node for r in report if r.node != "conv2d"]
    for row in report:
        assert row.local.sqnr > 10 and row.total.sqnr > 10, row
    assert ("conv2d" in {r.node for r in report}) is not fast
    conv = report["conv2d"].weights[0].error.sqnr
    assert conv == pytest.approx(after["conv2d"].weights[0].error.sqnr, abs=0.05)
    assert report.outputs[0].sqnr == pytest.approx(after.outputs[0].sqnr, abs=1)


def test_a_prepared_model_rounds_nothing_and_says_so() -> None:
    _, program, inputs = build(Mlp, 8, 16)
    prepared = prepare_pt2e(program, XNNPACKQuantizer())
    prepared(inputs[0])
    report = compare(program, prepared, inputs)
    assert all(row.total.is_exact and row.local.is_exact for row in report)
    assert "observers round nothing" in report.notes[0] and len(report.worst()) == 0
