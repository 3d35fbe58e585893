"""Control flow: observers go into bodies, weights are folded there, the operators come back."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from support.control_flow_models import (
    MODELS,
    Branches,
    Cond,
    Nested,
    WhileLoop,
    expected,
    exported,
    inputs,
    model_of,
)
from support.small_quantizers import NoopQuantizer, SmallQuantizer
from torch import Tensor, nn

from pt2q import (
    MinMaxObserver,
    QuantGraphModule,
    QuantizationAnnotation,
    QuantizationSpec,
    convert_pt2e,
    prepare_pt2e,
    sqnr,
    verify,
)
from pt2q.errors import BatchNormNotFoldedWarning, ReferenceIncompleteWarning
from pt2q.ir import ops
from pt2q.ir.control_flow import graph_modules, run_cond, run_map, run_scan, run_while_loop
from pt2q.ir.graph import dump, is_float_tensor
from pt2q.passes import verified_passes
from pt2q.quantizers import XNNPACKQuantizer

# An operator of control flow that records gradients traces its bodies anew in every call.
pytestmark = pytest.mark.usefixtures("no_gradients")


@functools.cache
def both(
    kind: type[nn.Module], quantizer: type[SmallQuantizer] | type[XNNPACKQuantizer]
) -> tuple[QuantGraphModule, QuantGraphModule]:
    """A model prepared and calibrated, and converted."""
    with verified_passes():
        prepared = prepare_pt2e(exported(kind), quantizer())
        for x in inputs():
            prepared(x)
        return prepared, convert_pt2e(prepared)


@pytest.mark.parametrize("kind", MODELS)
def test_nothing_annotated_changes_nothing(kind: type[nn.Module]) -> None:
    with verified_passes(), pytest.warns(UserWarning, match="annotated nothing"):
        prepared = prepare_pt2e(exported(kind), NoopQuantizer())
    converted = convert_pt2e(prepared)
    for x, y in zip(inputs(), expected(kind), strict=True):
        torch.testing.assert_close(prepared(x), y, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(converted(x), y, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("quantizer", [SmallQuantizer, XNNPACKQuantizer])
@pytest.mark.parametrize("kind", MODELS)
def test_bodies_are_quantized(kind: type[nn.Module], quantizer: type) -> None:
    model, (_, converted) = model_of(kind)[0], both(kind, quantizer)
    for x, y in zip(inputs(), expected(kind), strict=True):
        assert sqnr(y, converted(x)) > 22
    weights = [v for k, v in converted.state_dict().items() if k.endswith("weight_quantized")]
    linears = sum(isinstance(m, nn.Linear) for m in model.modules())
    assert len(weights) == linears and all(w.dtype == torch.int8 for w in weights)
    assert not any(k.endswith(".weight") for k in converted.state_dict())


@pytest.mark.parametrize("kind", (Cond, Nested))
def test_the_converted_model_exports_copies_and_pickles(kind: type[nn.Module], tmp_path) -> None:
    prepared, converted = both(kind, SmallQuantizer)
    results = [converted(x) for x in inputs()]
    copied = copy.deepcopy(prepared)
    torch.save(prepared, tmp_path / "prepared.pt")
    loaded = torch.load(tmp_path / "prepared.pt", weights_only=False)
    for other in (copied, loaded):
        converted = convert_pt2e(other)
        again = torch.export.export(converted, (inputs()[0],)).module()
        for x, y in zip(inputs(), results, strict=True):
            torch.testing.assert_close(converted(x), y, atol=0, rtol=0)
            torch.testing.assert_close(again(x), y, atol=0, rtol=0)


def test_a_carried_value_has_one_set_of_parameters() -> None:
    _, converted = both(WhileLoop, SmallQuantizer)
    body = converted.get_submodule("while_loop_body_graph_0")
    outer = next(n for n in converted.graph.nodes if n.name.startswith("quantize_per_tensor"))
    inner = next(n for n in body.graph.nodes if n.name.startswith("quantize_per_tensor"))
    assert outer.args[1:] == inner.args[1:]


def test_the_converted_loop_as_text() -> None:
    prepared = prepare_pt2e(exported(WhileLoop), SmallQuantizer(None, output=False))
    converted = convert_pt2e(prepared)
    assert dump(converted.get_submodule("while_loop_body_graph_0")) == "\n".join(
        [
            "%arg0_1 = placeholder(arg0_1)",
            "%arg1_1 = placeholder(arg1_1)",
            "%a_bias_1 = placeholder(a_bias)",
            "%a_weight_scale_1 = placeholder(a_weight_scale)",
            "%a_weight_zero_point_1 = placeholder(a_weight_zero_point)",
            "%a_weight_quantized_1 = placeholder(a_weight_quantized)",
            "%dequantize_per_channel_default = quantized_decomposed.dequantize_per_channel.default("
            "%a_weight_quantized_1, %a_weight_scale_1, %a_weight_zero_point_1, 0, -127, 127, "
            "torch.int8)",
            "%add = aten.add.Tensor(%arg0_1, 1)",
            "%linear = aten.linear.default(%arg1_1, %dequantize_per_channel_default, %a_bias_1)",
            "%tanh = aten.tanh.default(%linear)",
            "return [%add, %tanh]",
        ]
    )


def test_one_weight_in_two_branches_is_stored_once() -> None:
    converted = convert_pt2e(prepare_pt2e(exported(Nested), SmallQuantizer(None, output=False)))
    stored = [name for name in converted.state_dict() if name.endswith("weight_quantized")]
    assert sorted(stored) == ["a.weight_quantized", "b.weight_quantized"]


def test_gradients_flow_through_a_prepared_loop() -> None:
    model, program = model_of(WhileLoop)
    prepared = prepare_pt2e(program, SmallQuantizer())
    model.zero_grad()
    x = inputs()[0]
    with torch.enable_grad():
        prepared(x).square().sum().backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    with torch.enable_grad():
        unrolled = x
        for _ in range(3):
            unrolled = model.a(unrolled).tanh()
        model.c(unrolled).square().sum().backward()
    assert set(found) == {n for n, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)


def test_the_report_names_bodies() -> None:
    quantizer = XNNPACKQuantizer()
    prepare_pt2e(exported(Cond), quantizer)
    names = [row.node for row in quantizer.report().rows if row.quantized]
    assert names == ["linear", "true_graph_0.linear", "true_graph_0.relu", "false_graph_0.linear"]


def test_an_untaken_branch_has_no_data() -> None:
    from pt2q.errors import NoDataError

    prepared = prepare_pt2e(exported(Branches), SmallQuantizer())
    prepared(torch.rand(6, 8))
    with pytest.raises(NoDataError, match=r"never ran false_graph_0, .*calibrate"):
        convert_pt2e(prepared)


@pytest.mark.parametrize("quantizer", [SmallQuantizer, XNNPACKQuantizer])
@pytest.mark.parametrize("kind", MODELS)
def test_bodies_keep_the_laws_of_the_graph(kind: type[nn.Module], quantizer: Any) -> None:
    # Export gives the operators in a body no from_node; what passes add there has one.
    for model in both(kind, quantizer):
        verify(model, (inputs()[0],)).raise_if_broken()


def test_a_quantize_in_a_body_without_its_origin_is_named() -> None:
    converted = copy.deepcopy(both(Cond, SmallQuantizer)[1])
    body = converted.get_submodule("true_graph_0")
    node = next(n for n in body.graph.nodes if ops.is_op(n, ops.QUANTIZE))  # type: ignore[union-attr]
    del node.meta["from_node"]
    found = verify(converted).violations
    assert [(v.law, v.node) for v in found] == [("metadata", f"true_graph_0.{node.name}")]


def test_runners_mean_what_the_operators_mean() -> None:
    x = torch.randn(5, 3)
    assert torch.equal(run_cond(torch.tensor(False), torch.sin, torch.cos, (x,)), x.cos())
    doubled = run_while_loop(lambda i, v: i < 3, lambda i, v: (i + 1, v * 2), (torch.tensor(0), x))
    assert torch.equal(doubled[1], x * 8)
    carry, rows = run_scan(lambda c, r: (c + r, c + r), (torch.zeros(3),), (x,))
    torch.testing.assert_close(rows, x.cumsum(0))
    torch.testing.assert_close(carry, x.sum(0))
    torch.testing.assert_close(run_map(lambda r: (r * 2,), (x,))[0], x * 2)


def test_every_graph_is_found_once() -> None:
    prepared, _ = both(Nested, SmallQuantizer)
    assert len(list(graph_modules(prepared))) == 5


class Unfolded(nn.Module):
    """A branch with a layer norm, which has no integer form, and a batch norm on its own."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.batch_norm = nn.LayerNorm(8), nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda x: self.norm(x), lambda x: self.batch_norm(x), (x,))


class EveryOperator(NoopQuantizer):
    """Every input and output that is a floating point tensor, but for constants."""

    def annotate(self, model: Any) -> Any:
        spec = QuantizationSpec(torch.int8, MinMaxObserver, -128, 127, torch.per_tensor_affine)
        for node in model.graph.nodes:
            if node.op == "call_function" and is_float_tensor(node):
                read = [n for n in node.all_input_nodes if is_float_tensor(n)]
                specs = {n: spec for n in read if n.op != "get_attr"}
                node.meta["quantization_annotation"] = QuantizationAnnotation(specs, spec)
        return model


def test_warnings_name_operators_in_bodies_by_their_body() -> None:
    program = torch.export.export(Unfolded().eval(), (inputs()[0],))
    with pytest.warns(BatchNormNotFoldedWarning, match=r"false_graph_0\.batch_norm: "):
        prepared = prepare_pt2e(program, EveryOperator())
    for x in inputs():
        prepared(x)
    with pytest.warns(ReferenceIncompleteWarning, match=r"true_graph_0\.layer_norm \(aten"):
        convert_pt2e(prepared, use_reference_representation=True)
