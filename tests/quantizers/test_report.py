"""What a quantizer reports of its decisions."""

from __future__ import annotations

import pytest
import torch
from support.applied_functions import Apply
from support.flow import imported
from torch import Tensor, nn
from torch.nn import functional as F

from pt2q.quantizers import (
    Reason,
    Report,
    Row,
    XNNPACKQuantizer,
)
from pt2q.quantizers.toolkit.reasons import NO_QUANTIZED_READER


def test_the_report_is_a_table() -> None:
    quantizer = XNNPACKQuantizer()
    net = Apply(lambda m, x: F.softmax(m[0](x), -1), nn.Linear(3, 3))
    quantizer.annotate(imported(net, torch.randn(2, 3)))
    assert str(quantizer.report()) == "\n".join(
        [
            "node     module    operator             decision",
            "-------  --------  -------------------  ----------------------------------------",
            "linear   layers.0  aten.linear.default  int8 static, weight int8 per-channel",
            "softmax            aten.softmax.int     float: XNNPACK has no int8 kernel for it",
            "",
            "1 of 2 operators quantized; 1 in float:",
            "    1 x XNNPACK has no int8 kernel for it [no-int8-kernel]",
            "          aten.softmax",
        ]
    )
    report = quantizer.report()
    assert report.counts() == {"aten.linear.default": (1, 0), "aten.softmax.int": (0, 1)}
    assert report["linear"].quantized and len(report.left_float) == 1
    with pytest.raises(KeyError, match="no row for node 'conv'"):
        report["conv"]


NO_KERNEL = Reason("no-kernel", "no kernel for it")


def left(node: str, module: str, operator: str, reason: Reason) -> Row:
    return Row(node=node, module=module, operator=operator, reason=reason)


def test_an_unrolled_layer_is_a_few_lines() -> None:
    gates = [left(f"gate_{i}", "lstm", "aten.sigmoid.default", NO_KERNEL) for i in range(8)]
    few = [left(f"add_{i}", "lstm", "aten.add.Tensor", NO_KERNEL) for i in range(7)]
    alone = [left(f"mul_{i}", "", "aten.mul.Tensor", NO_KERNEL) for i in range(9)]
    mixed = [row for rows in zip(gates, [*few, alone[0]], alone[1:], strict=True) for row in rows]
    report = Report(tuple(mixed))
    lines = report.table().splitlines()[2:]
    assert lines[0].startswith("gate_0 ... gate_7 (8)  lstm ")
    assert len(lines) == 1 + len(few) + len(alone)
    assert len(report) == len(mixed) and "24 in float" in report.summary()


def _long_report() -> Report:
    module = "encoder.layers.0.attention.output"
    return Report(
        (
            Row(node="linear", module=module, operator="aten.linear.default", words="int8 static"),
            left("add", "", "aten.add.Tensor", NO_QUANTIZED_READER),
            left("mul", module, "aten.mul.Tensor", NO_QUANTIZED_READER),
            left("add_1", "", "aten.add.Tensor", NO_QUANTIZED_READER),
            left("cumsum", "", "aten.cumsum.default", NO_KERNEL),
        )
    )


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_the_report_fits_the_terminal(width) -> None:
    report = _long_report()
    lines = report.text(width).splitlines()
    # What cannot be broken: the names.
    assert all(len(line) <= max(width, 66) for line in lines), [len(x) for x in lines]
    words = " ".join(report.text(width).split())
    for row in report:
        assert row.node in words and row.operator in words
        assert " ".join(row.how.split()) in words


def test_the_summary_names_every_reason_with_its_operators_and_what_to_do() -> None:
    report = _long_report()
    lines = report.summary(200).splitlines()
    assert lines[:3] == [
        "1 of 5 operators quantized; 4 in float:",
        f"    3 x {NO_QUANTIZED_READER} [no-quantized-reader]",
        "          2 aten.add, aten.mul",
    ]
    assert lines[3].startswith("        > int8 between float operators")
    assert "set_operator_type" in lines[3] and "[[override]] operator" in lines[3]
    assert lines[4:] == ["    1 x no kernel for it [no-kernel]", "          aten.cumsum"]
    assert [reason for reason in report.reasons()] == [NO_QUANTIZED_READER, NO_KERNEL]
    assert Report(report.quantized).summary() == "1 of 1 operators quantized"


def test_integers_and_dead_nodes_have_no_rows() -> None:
    def forward(m: nn.ModuleList, x: Tensor, i: Tensor) -> Tensor:
        torch.tanh(m[1](x))  # read by nobody, as an unused pooler is
        return m[0](x) + (i + 1).float()

    quantizer = XNNPACKQuantizer()
    net = Apply(forward, nn.Linear(3, 3), nn.Linear(3, 3))
    quantizer.annotate(imported(net, torch.randn(2, 3), torch.arange(3)))
    assert [row.node for row in quantizer.report()][:1] == ["linear_1"]
    assert {row.operator for row in quantizer.report()} == {
        "aten.linear.default",
        "aten.add.Tensor",
    }
