"""Each broken law is named with its node."""

from __future__ import annotations

import copy

import pytest
import torch
from support.nodes import node_of
from support.small_quantizers import DYNAMIC, SmallQuantizer
from support.verifying import X, converted, prepared

from pt2q import MinMaxObserver, verify
from pt2q.errors import GraphLawError
from pt2q.ir import ops
from pt2q.ir.graph import set_constant
from pt2q.passes import run_passes, verified_passes


def broken(model, inputs=None) -> list[str]:
    return [f"{v.law} {v.text}" for v in verify(model, inputs).violations]


def names(violations: list[str]) -> set[str]:
    return {text.split()[0] for text in violations}


@pytest.mark.parametrize(
    ("argument", "value", "expected"),
    [
        ("scale", float("inf"), "finite and positive"),
        ("scale", 0.0, "finite and positive"),
        ("scale", -0.5, "finite and positive"),
        ("zero_point", 300, r"must be in [-128, 127], found [300]"),
        ("quant_max", 400, "outside of torch.int8"),
        ("quant_min", 127, "is empty"),
    ],
)
def test_parameters_of_a_quantize(argument, value, expected):
    model = converted()
    node = node_of(model, ops.QUANTIZE)
    ops.set_argument(node, argument, value)
    found = broken(model)
    assert any(text.startswith("parameters") and expected in text for text in found)
    assert any(text.startswith("mirror") and argument in text for text in found)
    assert verify(model).violations[0].node == node.name


def test_scales_per_channel():
    model = converted()
    node = next(n for n in model.graph.nodes if "per_channel" in str(n.target))
    scale = str(ops.argument(node, "scales").target)
    set_constant(model, scale, torch.tensor([1.0, float("nan"), 0.1, 0.1]))
    assert names(broken(model)) == {"parameters"}
    set_constant(model, scale, torch.ones(3))
    assert any("(3,) scales for 4 channels" in text for text in broken(model))


def test_a_dequantize_that_does_not_mirror():
    model = converted()
    node = next(
        n
        for n in model.graph.nodes
        if ops.is_op(n, ops.DEQUANTIZE) and ops.is_op(n.args[0], ops.QUANTIZE)
    )
    ops.set_argument(node, "zero_point", int(ops.argument(node, "zero_point")) - 1)
    assert names(broken(model)) == {"mirror"}


def test_dynamic_parameters_of_another_value():
    model = converted(SmallQuantizer(DYNAMIC))
    node = next(
        n
        for n in model.graph.nodes
        if n.target is torch.ops.quantized_decomposed.dequantize_per_tensor.tensor
    )
    scale = ops.argument(node, "scale")
    with model.graph.inserting_before(node):
        other = model.graph.call_function(ops.GETITEM, (scale.args[0], 1))
    other.meta.update(scale.meta)
    ops.set_argument(node, "scale", other)
    assert names(broken(model)) == {"mirror"}


def test_stored_integers_outside_of_their_range():
    model = converted()
    node = next(n for n in model.graph.nodes if n.op == "get_attr" and "quantized" in n.name)
    stored = model.state_dict()[str(node.target)]
    set_constant(model, str(node.target), torch.full_like(stored, -128))
    found = broken(model)
    assert names(found) == {"mirror"} and "holds [-128, -128]" in found[0]
    set_constant(model, str(node.target), stored.to(torch.int32))
    assert "holds torch.int32" in broken(model)[0]


def test_dangling_and_unused():
    model = converted()
    set_constant(model, "extra", torch.ones(2))
    assert broken(model) == ["unused is held by the module and read by no node"]
    model = converted()
    node = next(n for n in model.graph.nodes if n.op == "get_attr")
    node.target = "nowhere.to_be.found"
    assert "attributes" in names(broken(model))
    model = prepared()
    model.add_module("activation_post_process_99", MinMaxObserver())
    assert broken(model) == ["unused is an observer that no node calls"]


def test_metadata():
    model = converted()
    node = node_of(model, ops.QUANTIZE)
    for key in ("nn_module_stack", "from_node", "val"):
        del node.meta[key]
    found = broken(model)
    assert names(found) == {"metadata"} and len(found) == 3


def test_recorded_values():
    model = converted()
    node = node_of(model, ops.QUANTIZE)
    node.meta["val"] = node.meta["val"].to(torch.int32)
    assert names(broken(model)) == {"dtypes"}
    assert names(broken(model, X)) == {"dtypes", "values"}


def test_observers_that_share_are_one_object():
    model = prepared()
    target = next(
        n.target
        for n in model.graph.nodes
        if n.op == "call_module" and any(ops.is_op(u, ops.ADD) for u in n.users)
    )
    model.add_module("another", copy.deepcopy(model.get_submodule(str(target))))
    next(n for n in model.graph.nodes if n.target == target).target = "another"
    assert "sharing" in names(broken(model))


def test_a_model_that_cannot_be_exported():
    model = converted()
    node = node_of(model, ops.CONV)
    ops.set_argument(node, "groups", 2)
    assert names(broken(model, X)) >= {"values", "exportable"}


def test_raise_if_broken_names_each_violation():
    model = converted()
    ops.set_argument(node_of(model, ops.QUANTIZE), "scale", 0.0)
    with pytest.raises(GraphLawError, match=r"3 violation.*\n.*\[parameters\].*\n.*\[mirror\]"):
        verify(model).raise_if_broken()
    with pytest.raises(ValueError, match="no law 'gravity'"):
        verify(model, laws=["gravity"])


def test_verified_passes_check_the_laws():
    class Spoil:
        def __call__(self, model) -> bool:
            ops.set_argument(node_of(model, ops.QUANTIZE), "scale", float("nan"))
            return True

    model = converted()
    run_passes(model, [])
    with verified_passes(), pytest.raises(GraphLawError, match="broke a law"):
        run_passes(model, [Spoil()])
