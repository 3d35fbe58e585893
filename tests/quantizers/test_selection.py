"""Filters, their precedence, and warnings about those that match nothing."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pt2q.errors import SpecError, UnmatchedRuleWarning
from pt2q.ir.module import import_exported
from pt2q.quantizers import Report, XNNPACKQuantizer, get_symmetric_quantization_config
from pt2q.quantizers.toolkit.selection.resolution import path_prefixes
from pt2q.quantizers.toolkit.selection.statements import type_name

STATIC = get_symmetric_quantization_config(is_per_channel=True)
PER_TENSOR = get_symmetric_quantization_config()


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.gelu(self.conv(x)))


class Net(nn.Module):
    """Blocks 0 to 10, so that ``block.1`` is a prefix of ``block.10`` as text."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.ModuleList(Block() for _ in range(11))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for i in (0, 1, 10):
            x = F.gelu(self.block[i](x))
        return self.head(x)


def report(quantizer: XNNPACKQuantizer, strict: bool = False) -> Report:
    exported = torch.export.export(Net().eval(), (torch.randn(1, 2, 4, 4),), strict=strict)
    quantizer.annotate(import_exported(exported))
    return quantizer.report()


def quantized(quantizer: XNNPACKQuantizer, strict: bool = False) -> set[str]:
    return {row.module for row in report(quantizer, strict).quantized}


ALL = {f"block.{i}.{part}" for i in (0, 1, 10) for part in ("conv", "fc")} | {"head"}
FCS = {path for path in ALL if path.endswith("fc")}
strictness = pytest.mark.parametrize("strict", [False, True])


@strictness
def test_names_match_whole_path_components(strict: bool) -> None:
    found = quantized(XNNPACKQuantizer().set_module_name("block.1", STATIC), strict)
    assert found == {"block.1.conv", "block.1.fc"}


@strictness
def test_a_container_that_is_never_called_has_a_name_too(strict: bool) -> None:
    found = quantized(XNNPACKQuantizer().set_module_name("block", STATIC), strict)
    assert found == ALL - {"head"}


@strictness
@pytest.mark.parametrize(
    "given", [nn.Linear, "torch.nn.modules.linear.Linear", "torch.nn.Linear", "Linear"]
)
def test_module_types(given: Any, strict: bool) -> None:
    found = quantized(XNNPACKQuantizer().set_module_type(given, STATIC), strict)
    assert found == FCS | {"head"}


def test_types_of_the_users_own() -> None:
    assert quantized(XNNPACKQuantizer().set_module_type(Block, STATIC)) == ALL - {"head"}


@pytest.mark.parametrize("given", [torch.ops.aten.linear, torch.ops.aten.linear.default, F.linear])
def test_operator_types(given: Any) -> None:
    found = quantized(XNNPACKQuantizer().set_operator_type(given, STATIC))
    assert found == FCS | {"head"}


def test_an_overload_is_more_specific_than_its_packet() -> None:
    quantizer = XNNPACKQuantizer().set_global(STATIC)
    quantizer.set_operator_type(torch.ops.aten.linear.default, None)
    quantizer.set_operator_type(torch.ops.aten.linear, STATIC)
    assert quantized(quantizer) == {path for path in ALL if path.endswith("conv")}


def test_precedence() -> None:
    quantizer = XNNPACKQuantizer().set_global(None)
    assert quantized(quantizer) == set()
    quantizer.set_operator_type(torch.ops.aten.linear, STATIC)
    assert quantized(quantizer) == FCS | {"head"}
    quantizer.set_module_type(Block, None)
    assert quantized(quantizer) == {"head"}
    quantizer.set_module_name("block.0.fc", STATIC)
    assert quantized(quantizer) == {"block.0.fc", "head"}


def test_the_longest_name_and_the_innermost_type_win() -> None:
    quantizer = XNNPACKQuantizer().set_module_name("block", STATIC)
    quantizer.set_module_name("block.1", None).set_module_name("block.1.fc", STATIC)
    assert quantized(quantizer) == ALL - {"head", "block.1.conv"}
    quantizer = XNNPACKQuantizer().set_module_type(Block, None)
    quantizer.set_module_type(nn.Linear, STATIC)
    assert quantized(quantizer) == FCS | {"head"}


def test_none_makes_an_exception_to_the_default() -> None:
    assert quantized(XNNPACKQuantizer()) == ALL
    assert quantized(XNNPACKQuantizer().set_module_name("head", None)) == ALL - {"head"}


def test_a_configuration_replaces_the_default() -> None:
    rows = report(XNNPACKQuantizer().set_module_name("head", PER_TENSOR)).quantized
    assert [(r.module, r.how) for r in rows] == [("head", "int8 static, weight int8 per-tensor")]


def test_the_reason_names_the_statement() -> None:
    rows = report(XNNPACKQuantizer().set_module_name("head", None))
    head = next(row for row in rows if row.module == "head")
    assert head.how == "float: module name 'head' is set to None"


def test_filter_function() -> None:
    quantizer = XNNPACKQuantizer().set_filter_function(lambda node: "conv" in node.name)
    assert quantized(quantizer) == {path for path in ALL if path.endswith("conv")}
    assert "float: the filter function leaves it out" in {r.how for r in quantizer.report()}
    assert quantized(quantizer.set_filter_function(None)) == ALL


@pytest.mark.parametrize(
    ("method", "given", "named"),
    [
        ("set_module_name", "blok.1", "module name 'blok.1'"),
        ("set_module_type", nn.Conv3d, "module type 'torch.nn.modules.conv.Conv3d'"),
        ("set_operator_type", torch.ops.aten.conv3d, "operator type aten.conv3d"),
    ],
)
def test_a_rule_that_matches_nothing_warns_by_name(method: str, given: Any, named: str) -> None:
    quantizer = XNNPACKQuantizer().set_global(STATIC)
    getattr(quantizer, method)(given, None)
    with pytest.warns(UnmatchedRuleWarning, match=named):
        quantized(quantizer)


def test_a_rule_that_another_overrules_has_matched_all_the_same() -> None:
    quantizer = XNNPACKQuantizer().set_module_name("block", None)
    quantizer.set_module_name("block.0.fc", STATIC).set_operator_type(F.linear, STATIC)
    quantizer.set_module_type(Block, STATIC)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert quantized(quantizer) == {"block.0.fc", "head"}


def test_mistakes_are_errors_at_the_call() -> None:
    with pytest.raises(SpecError, match="use set_global"):
        XNNPACKQuantizer().set_module_name("", STATIC)
    with pytest.raises(SpecError, match="use set_module_type"):
        XNNPACKQuantizer().set_operator_type(nn.Linear, STATIC)
    with pytest.raises(SpecError, match="is not an operator"):
        XNNPACKQuantizer().set_operator_type("linear", STATIC)


def test_names() -> None:
    assert list(path_prefixes("a.b.c")) == ["a.b.c", "a.b", "a"]
    assert list(path_prefixes("")) == []
    assert type_name("my.Own") == "my.Own"


def test_patterns_match_component_by_component() -> None:
    quantizer = XNNPACKQuantizer().set_global(STATIC).set_module_name("block.*.conv", None)
    found = report(quantizer)
    convs = [row for row in found if "conv2d" in row.operator]
    assert len(convs) == 3
    assert not any(row.quantized for row in convs)
    assert all(row.how == "float: module name 'block.*.conv' is set to None" for row in convs)
    assert all(row.quantized for row in found if "linear" in row.operator)


def test_a_name_wins_over_a_pattern_and_the_last_pattern_over_the_first() -> None:
    quantizer = (
        XNNPACKQuantizer()
        .set_module_name("block.1*", None)
        .set_module_name("block.*", STATIC)
        .set_module_name("block.10", None)
    )
    rows = [row for row in report(quantizer) if "conv2d" in row.operator]
    assert [row.quantized for row in rows] == [True, True, False]


def test_a_pattern_that_matches_nothing_warns() -> None:
    with pytest.warns(UnmatchedRuleWarning, match=r"module name 'block\.\*\.norm'"):
        report(XNNPACKQuantizer().set_module_name("block.*.norm", None))


@pytest.mark.parametrize(
    "state, message",
    [
        (lambda q: q.set_global("int8"), "expected a pt2q.quantizers.QuantizationConfig.*str"),
        (lambda q: q.set_module_name("a", object()), "expected a pt2q.quantizers"),
        (lambda q: q.set_module_name(3, None), "named by a string, found 3"),
        (lambda q: q.set_module_type(nn.Linear(2, 2), None), "set_module_type: give a class"),
        (lambda q: q.set_module_type(torch.ops.aten.linear, None), "goes to set_operator_type"),
        (lambda q: q.set_filter_function(3), "takes a function of a node, found 3"),
        (lambda q: XNNPACKQuantizer("int8"), "expected a pt2q.quantizers"),
    ],
)
def test_statements_are_checked_where_they_are_made(state, message) -> None:
    with pytest.raises(SpecError, match=message):
        state(XNNPACKQuantizer())
