"""What a comparison prints, writes, and says of mistakes."""

from __future__ import annotations

import json
import math

import pytest
import torch
from support.comparing import ConvBn, Mlp, build, convert
from torch import Tensor, nn

import pt2q
from pt2q.debug import (
    Comparison,
    ComparisonError,
    compare,
    compare_results,
    generate_numeric_debug_handle,
)
from pt2q.errors import DataError, InputShapeError, NotExportedError


def test_the_report_is_a_table_and_json() -> None:
    _, program, inputs = build(ConvBn, 4, 3, 8, 8)
    report = compare(program, convert(program, inputs), inputs)
    text = str(report)
    lines = text.splitlines()
    end = lines[0].index("local dB") + len("local dB")
    assert all(line[end - 1] != " " for line in lines[2 : 2 + len(report)])  # right-aligned
    assert "conv2d + batch_norm" in text and "outputs over 3 batches" in text
    data = json.loads(report.to_json())
    assert [row["node"] for row in data["rows"]] == [row.node for row in report]
    assert data["rows"][1]["total"]["sqnr"] == report.rows[1].total.sqnr
    assert data["batches"] == 3 and data["rows"][1]["includes"] == ["conv2d"]
    worst = report.worst(3)
    ranks = [row.local.sqnr for row in worst]
    assert isinstance(worst, Comparison) and ranks == sorted(ranks) and len(worst) == 3
    total = [row.total.sqnr for row in report.worst(2, by="total")]
    finite = [row.total.sqnr for row in report if math.isfinite(row.total.sqnr)]
    assert total == sorted(finite)[:2]
    with pytest.raises(ValueError, match="local"):
        report.worst(by="other")
    with pytest.raises(KeyError, match="no row"):
        report["nothing"]
    with pytest.raises(AttributeError):
        report.rows = ()


def test_what_only_one_model_has_is_named() -> None:
    _, program, inputs = build(Mlp, 8, 16)
    converted = convert(program, inputs)
    target = next(n for n in converted.graph.nodes if n.name == "relu_1")
    with converted.graph.inserting_after(target):
        new = converted.graph.call_function(torch.ops.aten.tanh.default, (target,))
    target.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    converted.recompile()
    report = compare(program, converted, inputs)
    assert [(u.node, u.model) for u in report.unmatched] == [("tanh_default", "quantized")]
    assert [u.reason.code for u in report.unmatched] == ["only-quantized"]
    assert "tanh_default (quantized): the float model has no such value" in str(report)


def test_values_of_other_shapes_are_named() -> None:
    _, program, inputs = build(Mlp, 8, 16)
    converted = convert(program, inputs)
    for node in converted.graph.nodes:
        if node.name == "relu_1":
            node.target = torch.ops.aten.mean.dim
            node.args = (node.args[0], [0])
    converted.recompile()
    report = compare(program, converted, inputs)
    assert "its shape is (8, 16) in float, (16,) quantized" in str(report)
    assert report["relu_1"].total is None and report["relu_1"].local is None


def test_mistakes_are_named() -> None:
    _, program, inputs = build(Mlp, 8, 16)
    converted = convert(program, inputs)
    with pytest.raises(ComparisonError, match="the first model must be the float one"):
        compare(converted, program, inputs)
    with pytest.raises(ComparisonError, match="no batch"):
        compare(program, converted, [])
    with pytest.raises(DataError, match=r"has 2 arg.*as a list of tuples"):
        compare(program, converted, (inputs[0], inputs[1]))
    by_name, by_place = ({"x": inputs[0]},), (inputs[0],)
    named = str(compare(program, converted, list(by_name)))
    assert named == str(compare(program, converted, [by_place]))
    with pytest.raises(DataError, match=r"a batch has \['y'\], the model takes \['x'\]"):
        compare(program, converted, [{"y": inputs[0]}])
    with pytest.raises(DataError, match=r"a dict by their names, found int"):
        compare(program, converted, [3])
    with pytest.raises(ComparisonError, match="iterable of batches"):
        compare(program, converted, 3)
    with pytest.raises(InputShapeError, match="'x'"):
        compare(program, converted, [torch.randn(2, 16)])
    with pytest.raises(NotExportedError, match=r"torch\.export"):
        compare(nn.Linear(2, 2), converted, inputs)

    class Other(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.cos().sin()

    other = torch.export.export(Other(), (inputs[0],))
    with pytest.raises(ComparisonError, match="no operator in common"):
        compare(other, converted, inputs)


def test_the_names_are_at_the_top() -> None:
    assert pt2q.generate_numeric_debug_handle is generate_numeric_debug_handle
    assert pt2q.compare_results is compare_results
