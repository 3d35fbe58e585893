"""Integers, dead nodes, guards and a language model, where the peer fails."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support.flow import quantized
from support.laws import assert_values_match
from support.nets import NETS
from support.peer_faults import everything, xnnpack
from support.results import assert_same
from support.settling import settled
from support.small_models import TwoLinears
from support.small_quantizers import (
    DYNAMIC,
    FunctionQuantizer,
    NoopQuantizer,
    SmallQuantizer,
)
from torch import Tensor, nn
from torch.fx import Node

from pt2q import (
    Quantizer,
    convert_pt2e,
    prepare_pt2e,
    sqnr,
)
from pt2q.ir import ops

pytestmark = [
    pytest.mark.filterwarnings("ignore::pt2q.errors.NothingQuantizedWarning"),
    pytest.mark.filterwarnings("ignore::pt2q.errors.BatchNormNotFoldedWarning"),
]


def assert_noop(model: nn.Module, *inputs: Any) -> None:
    """Prepared and converted without annotations, the model computes what it computed."""
    model = settled(model)
    assert_same(quantized(model, NoopQuantizer(), *inputs)(*inputs), model(*inputs), 1e-4)


class Integers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.linear = nn.Embedding(16, 4), nn.Linear(4, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        shifted = (tokens + 3) * 2 - 1
        places = torch.cumsum((tokens != 0).int(), 1) + 1
        y = self.embedding(shifted % 16) + self.embedding(places)
        return self.linear(y)


@pytest.mark.parametrize(
    "quantizer",
    [FunctionQuantizer(everything), SmallQuantizer(), xnnpack()],
    ids=["everything", "small", "xnnpack"],
)
def test_integer_arithmetic_is_left_alone(quantizer: Quantizer) -> None:
    model, tokens = Integers().eval(), torch.randint(0, 8, (2, 5))
    program = torch.export.export(model, (tokens,))
    before = [_text(n) for n in program.module().graph.nodes if _is_integer(n)]
    done = quantized(model, quantizer, tokens)
    assert [
        _text(n) for n in done.graph.nodes if _is_integer(n) and n.name in str(before)
    ] == before
    assert_values_match(done, (tokens,))
    assert sqnr(model(tokens), done(tokens)) > 25


def _is_integer(node: Node) -> bool:
    value = node.meta.get("val")
    return (
        node.op == "call_function"
        and isinstance(value, Tensor)
        and value.dtype in (torch.int64, torch.int32, torch.bool)
        and value.dim() == 2
        and not ops.is_op(node, ops.QUANTIZE)
    )


def _text(node: Node) -> str:
    return f"{node.name}: {node.target}({node.args}, {node.kwargs})"


class Dead(nn.Module):
    """A pooler whose output nobody reads, and a parameter nobody uses."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.pooler = nn.Linear(4, 4), nn.Linear(4, 4)
        self.unused = nn.Parameter(torch.randn(100))

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        torch.tanh(self.pooler(y))
        return y


@pytest.mark.parametrize(
    "quantizer",
    [FunctionQuantizer(everything), SmallQuantizer(), SmallQuantizer(DYNAMIC), xnnpack()],
    ids=["everything", "static", "dynamic", "xnnpack"],
)
def test_dead_nodes_are_tolerated(quantizer: Quantizer) -> None:
    model, x = Dead().eval(), torch.randn(3, 4)
    done = quantized(model, quantizer, x)
    assert sqnr(model(x), done(x)) > 25
    assert "unused" not in done.state_dict()
    assert_same(torch.export.export(done, (x,)).module()(x), done(x))


@pytest.mark.parametrize("guards", [True, False])
def test_the_guard_call_of_export_is_gone(guards: bool) -> None:
    x = torch.randn(3, 4)
    module = torch.export.export(TwoLinears().eval(), (x,)).module(check_guards=guards)
    assert bool([n for n in module.graph.nodes if n.op == "call_module"]) == guards
    ready = prepare_pt2e(module, SmallQuantizer())
    assert not hasattr(ready, "_guards_fn")
    assert hasattr(module, "_guards_fn") == guards
    ready(x)
    done = copy.deepcopy(convert_pt2e(ready))
    assert not [n for n in done.graph.nodes if n.op == "call_module"]


@pytest.mark.parametrize("quantizer", [SmallQuantizer(), SmallQuantizer(DYNAMIC)])
def test_a_language_model_with_a_mask(quantizer: Quantizer) -> None:
    net, inputs = NETS["small_bert"].build(), NETS["small_bert"].inputs(2)
    done = quantized(net, quantizer, *inputs)
    assert sqnr(net(*inputs), done(*inputs)) > 10
    assert all(p.dtype != torch.int8 for p in done.parameters())


def test_nothing_annotated_changes_nothing() -> None:
    assert_noop(Dead(), torch.randn(2, 4))
    assert_noop(Integers(), torch.randint(0, 8, (2, 5)))
