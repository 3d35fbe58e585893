"""The figures of a comparison against computations of their own."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
import torch
from support.comparing import Mlp, build, convert, hooked, run
from support.small_quantizers import NoopQuantizer
from torch import Tensor, nn
from torch.nn import functional as F

from pt2q import convert_pt2e, prepare_pt2e, sqnr
from pt2q.debug import (
    Error,
    compare,
)
from pt2q.debug.error_sums import ErrorSums


def test_the_total_error_is_that_of_the_values_of_eager_and_converted_model() -> None:
    model, program, inputs = build(Mlp, 8, 16)
    converted = convert(program, inputs)
    report = compare(program, converted, inputs)
    runs = [run(converted, x) for x in inputs]
    for node, module in (("linear", "layers.0"), ("linear_1", "layers.1")):
        reference = torch.cat(hooked(model, module, inputs))
        value = torch.cat([r.seen(node) for r in runs])
        error = report[node].total
        assert error.sqnr == pytest.approx(float(sqnr(reference, value)), abs=1e-6)
        assert error.max_abs == pytest.approx(float((reference - value).abs().max()), rel=1e-6)
        cosine = F.cosine_similarity(reference.flatten().double(), value.flatten().double(), 0)
        assert error.cosine == pytest.approx(float(cosine), abs=1e-9)
        assert error.count == reference.numel() and report[node].calls == len(inputs)
    with torch.no_grad():
        outputs = [torch.cat([m(x) for x in inputs]) for m in (model, converted)]
    assert report.outputs[0].sqnr == pytest.approx(float(sqnr(*outputs)), abs=1e-6)
    assert report.outputs[0].sqnr == pytest.approx(report["relu_1"].total.sqnr, abs=1e-6)
    assert report.unmatched == () and report.notes == () and report.batches == 3


def test_the_local_error_is_that_of_the_quantized_operator_on_the_rounded_float_inputs() -> None:
    model, program, inputs = build(Mlp, 8, 16)
    converted = convert(program, inputs)
    report = compare(program, converted, inputs)
    nodes = {n.name: n for n in converted.graph.nodes}

    def rounding(name: str) -> Callable[[Tensor], Tensor]:
        quantize = next(u for u in nodes[name].users if "quantize" in str(u.target))
        scale, zero_point, low, high, _ = quantize.args[1:]
        return lambda x: ((x / scale).round() + zero_point).clamp(low, high).sub(zero_point) * scale

    layer = model.layers[1]
    weight, scale = (
        getattr(converted.layers, "1").__getattr__(f"weight_{kind}")
        for kind in ("quantized", "scale")
    )
    x = rounding("relu")(torch.cat(hooked(model, "layers.0", inputs)).relu())
    with torch.no_grad():
        reference = layer(x)
        value = F.linear(x, weight.float() * scale[:, None], layer.bias)
    assert report["linear_1"].local.sqnr == pytest.approx(float(sqnr(reference, value)), abs=1e-3)

    reference = torch.cat(hooked(model, "layers.1", inputs)).relu()
    expected = float(sqnr(reference, rounding("relu_1")(reference)))
    assert report["relu_1"].local.sqnr == pytest.approx(expected, abs=1e-3)
    (row,) = report["linear_1"].weights
    expected = float(sqnr(layer.weight, weight.float() * scale[:, None]))
    assert row.error.sqnr == pytest.approx(expected, abs=1e-6)
    assert (row.name, row.argument) == ("layers.1.weight_quantized", "weight")


def test_roundings_count_what_is_clipped_and_which_integers_occur() -> None:
    _, program, inputs = build(Mlp, 8, 16)
    converted = convert(program, [0.3 * x for x in inputs])  # ranges that are too small
    report = compare(program, converted, inputs)
    (row,) = report["x"].roundings
    (x,) = (n for n in converted.graph.nodes if n.name == "x")
    (quantize,) = x.users
    scale, zero_point, low, high, _ = quantize.args[1:]
    levels = (torch.cat(inputs) / scale).round() + zero_point
    clipped = float(((levels < low) | (levels > high)).float().mean())
    assert row.clipped == pytest.approx(clipped, abs=1e-6) and clipped > 0.05
    used = levels.clamp(low, high).unique().numel() / (high - low + 1)
    assert row.levels == pytest.approx(used, abs=1e-6)
    assert row.scale == (scale, scale) and row.zero_point == (zero_point, zero_point)
    assert (row.dtype, row.quant_min, row.quant_max) == ("int8", low, high)
    assert not row.dynamic


def test_integers_that_differ_are_counted() -> None:
    running = ErrorSums()
    running.add(torch.tensor([1, 2, 3]), torch.tensor([1, 5, 4]))
    error = running.result()
    assert (error.differing, error.count, error.is_exact) == (2, 3, False)


def test_nan_and_infinity_are_named() -> None:
    running = ErrorSums()
    inf, nan = math.inf, math.nan
    running.add(torch.tensor([1.0, inf, nan, -inf, 2.0]), torch.tensor([1.0, inf, nan, 3.0, nan]))
    error = running.result()
    assert (error.nonfinite, error.nonfinite_reference) == (2, 3)
    assert error.rank == -inf and not error.is_exact and error.max_abs == 0
    agree = ErrorSums()
    agree.add(torch.tensor([1.0, -inf]), torch.tensor([1.0, -inf]))
    assert agree.result().is_exact and agree.result().nonfinite_reference == 1


def test_a_nan_ranks_first() -> None:
    class Log(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return (self.a(x).relu() + 1e-4).log()

    _, program, inputs = build(Log, 4, 8)
    converted = convert(program, inputs)
    for node in converted.graph.nodes:
        if node.target is torch.ops.aten.add.Tensor:
            node.args = (node.args[0], -1e-3)
    converted.recompile()
    report = compare(program, converted, inputs)
    assert report.worst(1, by="total").rows[0].node == "log"
    # The logarithm itself is right: the sum that it is given is not.
    assert report["log"].local.nonfinite == 0 < report["log"].total.nonfinite
    assert report["add"].local.max_abs == pytest.approx(1.1e-3, rel=1e-3)
    assert "NaN/inf" in str(report) and report.outputs[0].nonfinite > 0
    json.loads(report.to_json())


def test_a_model_without_quantization_is_exact() -> None:
    _, program, inputs = build(Mlp, 8, 16)
    with pytest.warns(UserWarning, match="annotated nothing"):
        prepared = prepare_pt2e(program, NoopQuantizer())
    report = compare(program, convert_pt2e(prepared), inputs)
    assert all(row.total.is_exact for row in report)
    assert isinstance(report.outputs[0], Error) and report.outputs[0].is_exact
    assert "outputs over 3 batches: exact" in str(report)
