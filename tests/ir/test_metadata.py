"""What a user or a backend tagged nodes with survives every step of the flow.

Every node of the float program is tagged twice before it is quantized: under one key, with its own
name, as partitioners do it; and under a key of its own, so that it can be seen who stands for whom.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.qat_quantizer import QATQuantizer
from support.small_quantizers import SmallQuantizer
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from pt2q import QuantGraphModule, convert_pt2e, prepare_pt2e, prepare_qat_pt2e
from pt2q.ir import ops
from pt2q.ir.graph import OWN_META, add_meta, carry, copy_meta, handle_of, set_handle
from pt2q.ir.module import copy_module, import_exported
from pt2q.passes import (
    DecomposeAttention,
    DecomposeRecurrent,
    FoldComputedWeights,
    run_passes,
)

TAG, OWN = "quantization_tag", "mine."


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x)).relu().mean((2, 3))
        return self.linear(y)


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)


class Computed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.t() * 2)


IMAGE, ROWS = torch.randn(2, 2, 5, 5), torch.randn(2, 4)


def tag(model: GraphModule) -> dict[str, Node]:
    """Tag every node, and say which."""
    for node in model.graph.nodes:
        node.meta[TAG] = node.name
        node.meta[OWN + node.name] = True
    return {node.name: node for node in model.graph.nodes}


def tagged(model: nn.Module, *args: Any, strict: bool = False) -> torch.export.ExportedProgram:
    program = torch.export.export(model.eval(), args, strict=strict)
    module = program.module(check_guards=False)
    tag(module)
    return module


def stands_for(node: Node) -> set[str]:
    return {key.removeprefix(OWN) for key in node.meta if key.startswith(OWN)}


def found_in(model: GraphModule) -> set[str]:
    return set().union(*(stands_for(node) for node in model.graph.nodes))


def operators(model: GraphModule) -> set[str]:
    return {n.name for n in model.graph.nodes if n.op in ("call_function", "placeholder")}


def named(model: GraphModule, name: str) -> Node:
    return next(node for node in model.graph.nodes if node.name == name)


def of_target(model: GraphModule, targets: frozenset[Any]) -> list[Node]:
    return [node for node in model.graph.nodes if ops.is_op(node, targets)]


def test_prepare_and_convert_lose_no_tag() -> None:
    module = tagged(ConvNet(), IMAGE)
    before = operators(module)
    prepared = prepare_pt2e(module, SmallQuantizer())
    prepared(IMAGE)
    for model in (prepared, convert_pt2e(prepared), convert_pt2e(prepared, fold_quantize=False)):
        assert before <= found_in(model)
        assert all(stands_for(node) for node in model.graph.nodes)
        for name in before & operators(model):
            assert named(model, name).meta[TAG] == name
        assert {"conv2d", "batch_norm"} <= stands_for(named(model, "conv2d"))


def test_quantize_and_dequantize_carry_the_tag_of_the_operator_that_they_serve() -> None:
    prepared = prepare_pt2e(tagged(ConvNet(), IMAGE), SmallQuantizer())
    prepared(IMAGE)
    converted = convert_pt2e(prepared)
    for node in of_target(converted, ops.DEQUANTIZE):
        (reader,) = node.users
        assert node.meta[TAG] == (reader.name if reader.op == "call_function" else "linear")
    for node in of_target(converted, ops.QUANTIZE):
        maker = node.args[0]
        (reader,) = next(iter(node.users)).users
        assert node.meta[TAG] == (reader.name if maker.op == "placeholder" else maker.name)
    weight = named(converted, "conv2d").args[1].args[0]
    assert weight.op == "get_attr" and weight.meta[TAG] == "conv_weight"
    assert {"conv_weight", "conv2d"} <= stands_for(weight)


def test_no_tag_of_one_operator_lands_on_what_belongs_to_another() -> None:
    """A partition holds what its own operators need; the next operator is in none."""
    program = torch.export.export(ConvNet().eval(), (IMAGE,))
    module = program.module(check_guards=False)
    named(module, "conv2d").meta[TAG] = "backend"
    prepared = prepare_pt2e(module, SmallQuantizer())
    prepared(IMAGE)
    converted = convert_pt2e(prepared)
    for node in of_target(converted, ops.DEQUANTIZE):
        (reader,) = node.users
        assert (node.meta.get(TAG) == "backend") == (reader.name == "conv2d"), node
    assert TAG not in named(converted, "linear").meta


@pytest.mark.parametrize("fast", [False, True])
def test_fusing_for_training_loses_no_tag(fast: bool) -> None:
    module = tagged(ConvNet(), IMAGE, strict=True)
    before = operators(module)
    source = named(module, "conv2d").meta["source_fn_stack"]
    prepared = prepare_qat_pt2e(module, QATQuantizer(), fast=fast)
    helpers = [n for n in prepared.graph.nodes if n.name not in before and n.op == "call_function"]
    assert helpers and all("conv2d" in stands_for(node) for node in helpers)
    assert before <= found_in(prepared)
    prepared.train()(IMAGE)
    converted = convert_pt2e(prepared.eval())
    assert before <= found_in(converted)
    conv = named(converted, "conv2d")
    assert conv.meta[TAG] == "conv2d" and {"conv2d", "batch_norm"} <= stands_for(conv)
    assert conv.meta["source_fn_stack"] == source
    assert "conv_weight" in stands_for(conv.args[1].args[0])


@pytest.mark.parametrize(
    ("step", "model", "args", "name"),
    [
        (
            DecomposeAttention(),
            Attention(),
            (torch.randn(1, 2, 3, 4),),
            "scaled_dot_product_attention",
        ),
        (DecomposeRecurrent(), nn.GRU(3, 4), (torch.randn(2, 1, 3), torch.randn(1, 1, 4)), "gru"),
    ],
)
def test_what_an_operator_is_taken_apart_into_carries_its_tags(
    step: Any, model: nn.Module, args: tuple[Any, ...], name: str
) -> None:
    module = import_exported(tagged(model, *args))
    before = {node.name for node in module.graph.nodes}
    run_passes(module, [step])
    made = [node for node in module.graph.nodes if node.name not in before]
    assert len(made) > 5 and name not in {node.name for node in module.graph.nodes}
    assert all(node.meta[TAG] == name and name in stands_for(node) for node in made)
    assert operators_of_value(made)


def operators_of_value(nodes: list[Node]) -> bool:
    """What is of one node alone was not handed on."""
    return all(not (node.meta.keys() & (OWN_META - {"val", "from_node"})) for node in nodes)


def test_a_weight_that_is_computed_once_carries_the_tags_of_what_computed_it() -> None:
    module = import_exported(tagged(Computed(), ROWS))
    assert FoldComputedWeights()(module)
    weight = named(module, "linear").args[1]
    assert weight.op == "get_attr" and weight.meta[TAG] == "weight"
    assert {"weight", "t", "mul"} <= stands_for(weight)


def test_weights_inside_control_flow_keep_their_tags() -> None:
    class Choice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cond(x.sum() > 0, lambda x: self.linear(x), lambda x: x.cos(), (x,))

    prepared = prepare_pt2e(tagged(Choice(), ROWS), SmallQuantizer())
    prepared(ROWS.abs())
    prepared(-ROWS.abs())
    converted = convert_pt2e(prepared)
    (call,) = (n for n in converted.graph.nodes if n.target is ops.COND)
    assert call.meta[TAG] == "cond"
    operands = [n for n in call.args[3] if n.op == "get_attr"]
    assert {"linear_weight", "linear_bias"} <= set().union(*map(stands_for, operands))


@pytest.mark.parametrize(
    "move", [copy.deepcopy, copy_module, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_copies_and_pickles_keep_tags(move: Callable[[QuantGraphModule], QuantGraphModule]) -> None:
    prepared = prepare_pt2e(tagged(ConvNet(), IMAGE), SmallQuantizer())
    for node in prepared.graph.nodes:
        node.meta["nested"] = {"of": [node.name, (1, 2.5)], "dtype": torch.int8}
    moved = move(prepared)
    kept, found = (
        [(n.meta[TAG], n.meta["nested"], sorted(stands_for(n))) for n in model.graph.nodes]
        for model in (prepared, moved)
    )
    assert kept == found


def test_metadata_that_cannot_be_pickled_stays_behind() -> None:
    prepared = prepare_pt2e(tagged(ConvNet(), IMAGE), SmallQuantizer())
    first = next(iter(prepared.graph.nodes))
    first.meta["function"], first.meta["node"] = (lambda: 1), [first]
    moved = pickle.loads(pickle.dumps(prepared))
    there = next(iter(moved.graph.nodes))
    assert not {"function", "node"} & there.meta.keys() and there.meta[TAG] == first.name


def test_what_is_of_one_node_alone_is_not_handed_on() -> None:
    module = import_exported(tagged(ConvNet(), IMAGE))
    conv, relu = named(module, "conv2d"), named(module, "relu")
    for key in OWN_META - {"val", "from_node"}:
        conv.meta[key] = "of the convolution"
    relu.meta = {"theirs": 1}
    copy_meta(relu, conv, "test", "a value")
    assert relu.meta["val"] == "a value" and relu.meta[TAG] == "conv2d"
    (source,) = relu.meta["from_node"]
    assert (source.name, source.pass_name) == ("conv2d", "pt2q.test")
    assert not relu.meta.keys() & (OWN_META - {"val", "from_node"})
    assert relu.meta["theirs"] == 1 and stands_for(relu) == {"conv2d"}


def test_metadata_of_several_nodes_is_joined() -> None:
    module = import_exported(tagged(ConvNet(), IMAGE))
    conv, bn, relu = (named(module, name) for name in ("conv2d", "batch_norm", "relu"))
    set_handle(bn, 3)
    conv.meta["custom"] = {"mine": 1}
    add_meta(conv, bn)
    assert conv.meta[TAG] == "conv2d" and stands_for(conv) == {"conv2d", "batch_norm"}
    assert conv.meta["custom"] == {"mine": 1, "numeric_debug_handle": 3} and handle_of(conv) == 3
    value = relu.meta["val"]
    carry(relu, bn, conv)
    assert relu.meta[TAG] == "batch_norm" and relu.meta["val"] is value
    assert stands_for(relu) == {"conv2d", "batch_norm"}
