"""What holds for every backend's table, and what a table says of reasons and kernels."""

from __future__ import annotations

import json
import re
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.applied_functions import Apply, conv, image
from support.flow import imported
from support.row_programs import Case, quantize_programs
from support.row_runtimes import in_inductor
from torch import nn
from torch.nn import functional as F

from pt2q.ir.ops import GELU
from pt2q.quantizers import (
    BackendTable,
    X86InductorQuantizer,
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
    get_weight_only_quantization_config,
)
from pt2q.quantizers.tables import TABLES
from pt2q.quantizers.toolkit import reasons
from pt2q.quantizers.toolkit.config import Mode
from pt2q.quantizers.toolkit.reasons import REASONS
from pt2q.quantizers.toolkit.table.examples import between_convolutions
from pt2q.quantizers.x86_inductor.table import CONVOLUTION, X86_INDUCTOR

ROOT = Path(__file__).parents[2]
DOCS, QUANTIZERS = ROOT / "docs", ROOT / "quantizers"
WITH_GELU = between_convolutions(F.gelu)

each_table = pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))


@each_table
def test_every_row_has_a_name_an_example_and_limits(table: BackendTable) -> None:
    names = [rule.name for rule in table.rules]
    assert len(set(names)) == len(names)
    for rule in table.rules:
        assert rule.examples and rule.kernel is not None, rule.name
        assert rule.modes and rule.heads


@each_table
def test_a_table_takes_the_configurations_that_it_makes(table: BackendTable) -> None:
    for mode in Mode:
        if table.of_mode(mode):
            config = table.configure(mode)
            table.check_configuration(config)
            fitted = [rule.kernel for rule in table.of_mode(mode) if rule.kernel is not None]
            assert all(kernel.why_not(kernel.fitted(config)) is None for kernel in fitted)


def test_a_row_is_added_to_a_copy_of_a_table_in_one_expression() -> None:
    before = X86_INDUCTOR.rules
    row = replace(CONVOLUTION, name="convolution and gelu", tails=(GELU,), examples=(WITH_GELU,))
    quantizer = X86InductorQuantizer().add_rule(row)
    (outcome,) = in_inductor(
        quantize_programs(quantizer, [Case(row, WITH_GELU, Mode.STATIC)])
    ).values()
    outcome.check(most=0.01, mean=0.01)
    assert outcome.rules == {"convolution and gelu"} and not quantizer.report().left_float
    assert X86_INDUCTOR.rules is before and X86InductorQuantizer().table.rules is before


def test_a_kernel_that_does_not_take_a_configuration_leaves_its_operator_in_float() -> None:
    four_bits = get_symmetric_quantization_config(
        is_per_channel=True, weight_qmin=-8, weight_qmax=7
    )
    quantizer = XNNPACKQuantizer(four_bits)
    quantizer.annotate(imported(nn.Sequential(conv(), nn.Flatten(2), nn.Linear(64, 4)), image()))
    report = quantizer.report()
    assert report["linear"].how == "int8 static, weight int4 per-channel"
    reason = report["conv2d"].reason
    assert reason is not None and reason.code == "kernel-takes"
    assert "weights in int8 [-128, 127]" in reason.text and "int8 [-8, 7]" in reason.text


def test_weights_alone_are_no_configuration_for_integer_kernels() -> None:
    quantizer = XNNPACKQuantizer(get_weight_only_quantization_config())
    quantizer.annotate(imported(nn.Linear(8, 8), image()))
    assert [row.reason.code for row in quantizer.report().left_float] == ["kernel-needs"]


def test_a_tensor_of_more_dimensions_than_a_kernel_takes() -> None:
    quantizer = XNNPACKQuantizer()
    net = Apply(lambda m, x: m[0](m[0](x) + x), nn.Linear(4, 4))
    quantizer.annotate(imported(net, torch.randn(1, 1, 1, 1, 1, 2, 4)))
    (row,) = quantizer.report().left_float
    assert row.reason == reasons.TOO_MANY_DIMENSIONS.filled(found=7, most=6)


def test_reports_say_codes_to_programs() -> None:
    quantizer = XNNPACKQuantizer()
    quantizer.annotate(imported(nn.Sequential(nn.Linear(8, 8), nn.Softmax(-1)), image()))
    rows = json.loads(quantizer.report().to_json())
    assert [(row["node"], row["quantized"], row["rule"]) for row in rows] == [
        ("linear", True, "linear"),
        ("softmax", False, ""),
    ]
    assert rows[0]["reason"] is None
    assert rows[1]["reason"] == {
        "code": "no-int8-kernel",
        "text": "XNNPACK has no int8 kernel for it",
        "advice": "",
    }


@pytest.mark.parametrize("page", [p for p in DOCS.glob("*.md") if "<!-- end -->" in p.read_text()])
def test_the_tables_of_the_documentation_are_those_of_the_quantizers(page: Path) -> None:
    filled = runpy.run_path(str(DOCS / "tables.py"))["filled"]
    assert filled(page.read_text()) == page.read_text(), "run: python docs/tables.py"


def test_every_reason_is_given_somewhere() -> None:
    sources = "".join(p.read_text() for p in QUANTIZERS.rglob("*.py") if p.name != "reasons.py")
    unused = [name for name, value in vars(reasons).items() if isinstance(value, reasons.Reason)]
    assert [name for name in unused if not re.search(rf"\b{name}\b", sources)] == []


def test_reasons_have_codes_of_their_own() -> None:
    assert all(code == reason.code for code, reason in REASONS.items())
    assert len({reason.text for reason in REASONS.values()}) == len(REASONS)
    assert all(code == code.lower() and " " not in code for code in REASONS)
