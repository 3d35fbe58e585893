"""Every node says where it comes from."""

from __future__ import annotations

import pytest
import torch
from support.flow import converted, exported
from support.laws import assert_metadata
from support.nodes import nodes_of
from support.small_models import ConvReluAddCat, TwoLayers
from support.small_quantizers import (
    ACTIVATION,
    DYNAMIC,
    PER_TOKEN,
    SmallQuantizer,
    linears,
    weight_per_channel,
)
from torch.fx import Node

from pt2q import (
    convert_pt2e,
    prepare_pt2e,
)
from pt2q.ir import ops
from pt2q.spec import QuantizationSpecBase


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("spec", [ACTIVATION, DYNAMIC, PER_TOKEN, None])
def test_every_node_says_where_it_comes_from(
    strict: bool, spec: QuantizationSpecBase | None
) -> None:
    model, x = ConvReluAddCat(), torch.randn(1, 2, 4, 4)
    module = exported(model, x, strict=strict)
    ready = prepare_pt2e(module, linears(spec, weight_per_channel(0)))
    ready(x)
    for fold in (True, False):
        done = convert_pt2e(ready, fold_quantize=fold)
        for graph_module in (ready, done):
            assert_metadata(graph_module)
        names = {n.name for n in module.graph.nodes}
        for node in done.graph.nodes:
            if node.name in names or node.op == "output":
                continue
            sources = []
            at = node.meta["from_node"]
            while at:
                sources.append(at[-1].name)
                at = at[-1].from_node
            assert set(sources) & names, (node.name, sources)


def test_quantize_and_dequantize_belong_to_the_module_of_their_operator() -> None:
    done, _ = converted(TwoLayers(), SmallQuantizer(), torch.randn(2, 4))
    first, second = nodes_of(done, ops.LINEAR)

    def path(node: Node) -> str:
        return str(list(node.meta["nn_module_stack"].values())[-1][0])

    for linear, name in ((first, "one"), (second, "two")):
        for dequantize in linear.all_input_nodes:
            if ops.is_op(dequantize, ops.DEQUANTIZE):
                assert path(dequantize) == name
    (between,) = first.users
    assert path(between) == "one"
    (outermost,) = second.users
    assert path(outermost) == "two"


def test_originals_keep_their_metadata() -> None:
    module = exported(ConvReluAddCat(), torch.randn(1, 2, 4, 4))
    ready = prepare_pt2e(module, SmallQuantizer())
    ready(torch.randn(1, 2, 4, 4))
    done = convert_pt2e(ready)
    for result in (ready, done):
        kept = {n.name: n for n in result.graph.nodes}
        for node in module.graph.nodes:
            if node.op != "call_function":
                continue
            for key in ("nn_module_stack", "stack_trace", "from_node", "torch_fn"):
                assert kept[node.name].meta[key] == node.meta[key]
