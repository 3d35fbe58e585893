"""Reading the parameters of quantize and dequantize off a node, and writing them as one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node

from pt2q import QuantGraphModule
from pt2q.ir import ops
from pt2q.ir.emit import Emitter
from pt2q.ir.graph import get_constant, value_of
from pt2q.ir.module import import_exported
from pt2q.ir.qparams import QParams, read_qparams, write_dequantize, write_quantize

X = torch.tensor([[-3.0, 0.24, 0.26, 9.0], [1.0, -0.5, 100.0, 0.0]])


class Add(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + x


@pytest.fixture
def model() -> QuantGraphModule:
    return import_exported(torch.export.export(Add(), (X,)))


def expected(scale: Tensor, zero_point: Tensor) -> tuple[Tensor, Tensor]:
    integers = torch.clamp(torch.round(X / scale) + zero_point, -100, 90)
    return integers.to(torch.int8), (integers - zero_point) * scale


PER_TENSOR = QParams(0.5, 3, -100, 90, torch.int8)
COLUMNS = torch.tensor([0.5, 0.25, 1.0, 2.0]), torch.tensor([0, 3, -7, 1])
ROWS = torch.tensor([[0.5], [2.0]]), torch.tensor([[-5], [6]])
GROUPS = torch.tensor([[0.5, 1.0], [0.25, 2.0]]), torch.tensor([[1, 0], [0, -2]])
CASES = {
    "per_tensor": (PER_TENSOR, None, (torch.tensor(0.5), torch.tensor(3))),
    "per_tensor.tensor": (
        PER_TENSOR,
        (torch.tensor([0.5]), torch.tensor([3])),
        (torch.tensor(0.5), torch.tensor(3)),
    ),
    "per_channel": (replace(PER_TENSOR, axis=1), COLUMNS, COLUMNS),
    "per_token": (replace(PER_TENSOR, per_token=True), ROWS, ROWS),
    "per_channel_group": (
        replace(PER_TENSOR, group=2),
        GROUPS,
        tuple(t.repeat_interleave(2, 1) for t in GROUPS),
    ),
}


def computed(model: QuantGraphModule, node: Node) -> Tensor:
    model.graph.output_node().args = ((node,),)
    model.recompile()
    found: Tensor = model(X)
    return found


@pytest.mark.parametrize("name", CASES)
def test_what_is_written_is_read_and_computed(model: QuantGraphModule, name: str) -> None:
    params, stored, numbers = CASES[name]
    add = next(n for n in model.graph.nodes if n.op == "call_function")
    (x,) = add.all_input_nodes
    emit = Emitter(model, "test").before(add)
    if stored is not None:
        scale, zero_point = (emit.constant("number", t) for t in stored)
        params = replace(params, scale=scale, zero_point=zero_point)
    quantize = write_quantize(emit, x, params)
    dequantize = write_dequantize(emit, quantize, params, value_of(x))
    assert ops.is_op(quantize, ops.QUANTIZE) and ops.is_op(dequantize, ops.DEQUANTIZE)
    assert str(quantize.target).split(".", 1)[1].removeprefix("quantize_").startswith(name)
    for node in (quantize, dequantize):
        assert vars(read_qparams(node)) == vars(params)
    integers, reals = expected(*numbers)
    assert torch.equal(computed(model, quantize), integers)
    assert torch.equal(computed(model, dequantize), reals)
    assert value_of(quantize).dtype == torch.int8 and value_of(dequantize).dtype == torch.float32


def test_nodes_become_what_they_are_resolved_to(model: QuantGraphModule) -> None:
    add = next(n for n in model.graph.nodes if n.op == "call_function")
    emit = Emitter(model, "test").before(add)
    scale, zero_point = (emit.constant("number", t) for t in COLUMNS)
    params = replace(PER_TENSOR, axis=1, scale=scale, zero_point=zero_point)
    node = write_quantize(emit, add.all_input_nodes[0], params)
    found = read_qparams(node, lambda n: get_constant(model, n))
    assert torch.equal(found.scale, COLUMNS[0]) and torch.equal(found.zero_point, COLUMNS[1])
    assert found.is_static and not found.is_per_tensor
    assert not read_qparams(node).is_static


def test_a_zero_point_that_is_left_out_is_zero() -> None:
    graph = torch.fx.Graph()
    x, scales = (graph.placeholder(name) for name in ("x", "scales"))
    args: tuple[Any, ...] = (x, scales, None, 0, -128, 127, torch.int8)
    node: Node = graph.call_function(ops.qd.dequantize_per_channel.default, args)
    assert read_qparams(node).zero_point == 0


def test_another_float_type_is_told_to_the_dequantize() -> None:
    program = torch.export.export(Add(), (X.half(),))
    model = import_exported(program)
    add = next(n for n in model.graph.nodes if n.op == "call_function")
    (x,) = add.all_input_nodes
    emit = Emitter(model, "test").before(add)
    for params in (PER_TENSOR, replace(PER_TENSOR, group=2, scale=x)):
        node = write_dequantize(emit, x, params, value_of(x))
        assert torch.float16 in (*node.args, *node.kwargs.values())


def test_the_same_numbers_are_the_same_parameters() -> None:
    assert PER_TENSOR.same(replace(PER_TENSOR))
    assert not PER_TENSOR.same(replace(PER_TENSOR, zero_point=2))
    columns = replace(PER_TENSOR, scale=COLUMNS[0], zero_point=COLUMNS[1], axis=1)
    assert not columns.same(columns)  # which would take a comparison of tensors
    assert (PER_TENSOR.steps, columns.steps) == (103, 103)
