"""What a recipe says is what the quantizer does."""

from __future__ import annotations

import pytest
from support.recipe_programs import quantized

import pt2q
from pt2q import observers
from pt2q.app.recipe import Recipe, parse, template
from pt2q.deploy import BACKENDS
from pt2q.errors import UnmatchedRuleWarning
from pt2q.ir import ops
from pt2q.quantizers import (
    Report,
)


def rows(report: Report, module: str) -> list[str]:
    return [row.how for row in report if row.module == module]


def test_skips_and_overrides(program) -> None:
    text = """
    backend = "xnnpack"
    [skip]
    modules = ["blocks.*.up"]
    operators = ["aten.add"]
    [[override]]
    module = "head"
    mode = "dynamic"
    [[override]]
    module_type = "torch.nn.Conv2d"
    weight_scales = "tensor"
    [[override]]
    module = "blocks.1.down"
    weight_range = [-8, 7]
    """
    report, _ = quantized(program, parse(text).quantizer())
    for block in (0, 1):
        (linear, *_) = rows(report, f"blocks.{block}.up")
        assert linear == "float: module name 'blocks.*.up' is set to None"
    assert rows(report, "head") == ["int8 dynamic, weight int8 per-channel"]
    assert rows(report, "conv") == ["int8 static, weight int8 per-tensor"]
    # What adds to a residual is quantized at run time: see the quantizer.
    assert rows(report, "blocks.0.down") == ["int8 dynamic, weight int8 per-channel"]
    assert rows(report, "blocks.1.down") == ["int8 dynamic, weight int4 per-channel"]
    adds = [row.how for row in report if "add" in row.operator]
    assert adds
    assert all("aten.add is set to None" in how for how in adds)


def test_a_default_of_float_quantizes_only_what_is_named(program) -> None:
    text = """
    [default]
    mode = "float"
    [[override]]
    operator = "aten.linear.default"
    mode = "static"
    """
    report, _ = quantized(program, parse(text).quantizer())
    assert {row.operator for row in report.quantized} >= {"aten.linear.default"}
    assert not any("conv" in row.operator for row in report.quantized)


@pytest.mark.parametrize(
    "name, cls",
    [
        ("histogram", observers.HistogramObserver),
        ("minmax", observers.MinMaxObserver),
        ("moving-average", observers.MovingAverageMinMaxObserver),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_observers(program, backend, name, cls) -> None:
    text = f'backend = "{backend}"\n[default]\nactivation_observer = "{name}"'
    prepared = pt2q.prepare_pt2e(program, parse(text).quantizer())
    used = {type(m) for m in prepared.modules() if isinstance(m, observers.ObserverBase)}
    assert cls in used
    for other in {observers.HistogramObserver, observers.MovingAverageMinMaxObserver} - {cls}:
        assert other not in used


def test_ranges(program) -> None:
    text = """
    backend = "onnxruntime"
    [default]
    activation_range = [0, 127]
    weight_range = [-64, 63]
    """
    _, prepared = quantized(program, parse(text).quantizer())
    converted = pt2q.convert_pt2e(prepared)
    limits = set()
    for node in converted.graph.nodes:
        if ops.is_op(node, ops.DEQUANTIZE):
            limits.add((ops.argument(node, "quant_min"), ops.argument(node, "quant_max")))
    assert limits == {(0, 127), (-64, 63)}


def test_command_line_options_change_the_default_only() -> None:
    found = parse('[[override]]\nmodule = "head"\nweight_scales = "channel"')
    changed = found.changed(mode="dynamic", weight_scales="tensor")
    assert (changed.default.mode, changed.default.weight_scales) == ("dynamic", "tensor")
    assert changed.overrides == found.overrides
    assert found.changed() == found


def test_recipes_are_values() -> None:
    assert parse(template()) == parse(template())
    assert len({Recipe(), Recipe("x86"), Recipe()}) == 2


def test_a_pattern_that_matches_nothing_warns(program) -> None:
    found = parse('[skip]\nmodules = ["block.*"]')
    with pytest.warns(UnmatchedRuleWarning, match=r"'block\.\*' matches nothing"):
        pt2q.prepare_pt2e(program, found.quantizer())
