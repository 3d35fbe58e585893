"""Every reader has its own dequantize, in the module of that reader."""

from __future__ import annotations

import pytest
import torch
from support.golden import exact, exact_input
from support.nodes import nodes_of
from support.passes import Fork, annotate_inputs, prepared_copy
from support.results import assert_same
from support.small_models import TwoLayers
from support.small_quantizers import (
    ACTIVATION,
    DYNAMIC,
    FunctionQuantizer,
    SmallQuantizer,
)
from torch import Tensor, nn
from torch.fx import Node

from pt2q import QuantizationAnnotation
from pt2q.ir import ops
from pt2q.passes import (
    DuplicateDQPass,
    ObserversToQDQ,
    PortNodeMetaForQDQ,
    run_passes,
    verified_passes,
)

pytestmark = pytest.mark.usefixtures("no_gradients")


aten = torch.ops.aten


def test_every_reader_gets_its_own_dequantize() -> None:
    x = exact_input(2, 4)
    model = prepared_copy(exact(Fork()), FunctionQuantizer(annotate_inputs), x)
    run_passes(model, [ObserversToQDQ()])
    value = model(x)
    (dequantize,) = nodes_of(model, ops.DEQUANTIZE)
    assert len(dequantize.users) == 3
    with verified_passes():
        run_passes(model, [DuplicateDQPass()])
    found = nodes_of(model, ops.DEQUANTIZE)
    assert [len(n.users) for n in found] == [1, 1, 1]
    assert len(nodes_of(model, ops.QUANTIZE)) == 1
    assert_same(model(x), value)
    assert DuplicateDQPass()(model) is False


def test_dynamic_parameters_are_not_copied() -> None:
    x = torch.randn(2, 4)
    model = prepared_copy(nn.ModuleDict({"f": Fork()})["f"], _dynamic_inputs(), x)
    run_passes(model, [ObserversToQDQ(), DuplicateDQPass()])
    assert len(nodes_of(model, ops.DEQUANTIZE)) == 3
    assert len(nodes_of(model, ops.CHOOSE_QPARAMS)) == 1


class StaticThenDynamic(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(torch.relu(x))


def test_what_quantizes_anew_at_run_time_is_one_reader() -> None:
    def annotate(node: Node) -> QuantizationAnnotation | None:
        if node.target is aten.relu.default:
            return QuantizationAnnotation(output_qspec=ACTIVATION)
        if node.target is aten.tanh.default:
            return QuantizationAnnotation({node.args[0]: DYNAMIC})
        return None

    x = torch.randn(2, 4)
    model = prepared_copy(StaticThenDynamic(), FunctionQuantizer(annotate), x)
    run_passes(model, [ObserversToQDQ(), DuplicateDQPass()])
    (choice,) = nodes_of(model, ops.CHOOSE_QPARAMS)
    static, again = nodes_of(model, ops.DEQUANTIZE)
    assert [n for n in static.users if n is not choice] == [ops.data_input(again)]


def _dynamic_inputs() -> FunctionQuantizer:
    def annotate(node: Node) -> QuantizationAnnotation | None:
        found = annotate_inputs(node)
        if found is not None:
            found.input_qspec_map = dict.fromkeys(found.input_qspec_map, DYNAMIC)
        return found

    return FunctionQuantizer(annotate)


def test_dequantizes_move_to_the_module_of_their_reader() -> None:
    x = torch.randn(2, 4)
    model = prepared_copy(TwoLayers(), SmallQuantizer(), x)
    run_passes(model, [ObserversToQDQ(), DuplicateDQPass()])
    for node in nodes_of(model, ops.QUANTIZE | ops.DEQUANTIZE):
        node.meta.pop("nn_module_stack")
        node.meta.pop("stack_trace")
    run_passes(model, [PortNodeMetaForQDQ()])
    stacks = {n.name: n.meta["nn_module_stack"] for n in nodes_of(model, ops.LINEAR)}
    one, two = model.graph.find_nodes(op="call_function", target=aten.linear.default)
    for dequantize in two.all_input_nodes:
        if ops.is_op(dequantize, ops.DEQUANTIZE):
            assert dequantize.meta["nn_module_stack"] == stacks[two.name]
    quantize = next(iter(one.users))
    assert quantize.meta["nn_module_stack"] == stacks[one.name]
    first = ops.data_input(ops.data_input(one))
    assert first.meta["nn_module_stack"] == stacks[one.name]  # an input has no module itself
    assert first.meta["stack_trace"] == one.meta["stack_trace"]
