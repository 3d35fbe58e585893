"""What is known before the model runs is folded, and nothing else."""

from __future__ import annotations

import pytest
import torch
from support.flow import imported
from support.nodes import nodes_of
from support.results import assert_same
from support.small_quantizers import (
    ACTIVATION,
    WEIGHT_PER_TENSOR,
    FunctionQuantizer,
    weight_per_channel,
)
from torch import Tensor, nn
from torch.fx import Node

from pt2q import QuantizationAnnotation, convert_pt2e, prepare_pt2e
from pt2q.ir import ops
from pt2q.ir.constants import Constants
from pt2q.ir.graph import is_float_tensor
from pt2q.passes import (
    RemoveUnusedAttributes,
    RemoveUnusedConstants,
    run_passes,
    verified_passes,
)

pytestmark = pytest.mark.usefixtures("no_gradients")


class Random(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.register_buffer("state", torch.ones(4))

    state: Tensor

    def forward(self, x: Tensor) -> Tensor:
        computed = self.weight.t() * 2
        noise = torch.rand_like(self.weight)
        parts = self.weight.split(2)
        self.state.add_(1)
        return x @ computed + noise.sum() + parts[1].sum() + (self.state * 2) + x.sum()


def test_what_is_known_before_the_model_runs() -> None:
    model = imported(Random(), torch.randn(2, 4))
    constants = Constants(model)
    known = {n.name for n in model.graph.nodes if constants.is_constant(n)}
    assert {"weight", "t", "mul", "split", "getitem_1", "sum_2"} <= known
    assert not {"rand_like", "state", "add_", "mul_1", "sum_1", "x", "sum_3"} & known
    node = next(n for n in model.graph.nodes if n.name == "mul")
    assert torch.equal(constants.value(node), model.weight.t() * 2)
    node = next(n for n in model.graph.nodes if n.name == "getitem_1")
    assert torch.equal(constants.value(node), model.weight[2:])


def test_a_state_that_is_written_is_not_folded() -> None:
    def annotate(node: Node) -> QuantizationAnnotation | None:
        inputs = [n for n in node.all_input_nodes if is_float_tensor(n)]
        return QuantizationAnnotation(dict.fromkeys(inputs, ACTIVATION))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("state", torch.ones(4))

        state: Tensor

        def forward(self, x: Tensor) -> Tensor:
            y = x * self.state
            self.state.add_(1)
            return y

    x = torch.randn(2, 4)
    ready = prepare_pt2e(torch.export.export(Model(), (x,)), FunctionQuantizer(annotate))
    for _ in range(5):
        ready(x)
    ready.state.fill_(1.0)
    done = convert_pt2e(ready)
    for step in range(1, 5):
        torch.testing.assert_close(done(x), x * step, atol=0.1, rtol=0.1)


def test_a_constant_quantized_in_two_ways_is_stored_twice() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            linear = torch.nn.functional.linear
            return linear(linear(linear(x, self.weight), self.weight), self.weight)

    def annotate(node: Node) -> QuantizationAnnotation | None:
        if not ops.is_op(node, ops.LINEAR):
            return None
        spec = WEIGHT_PER_TENSOR if node.name == "linear_1" else weight_per_channel(0)
        return QuantizationAnnotation({ops.argument(node, "weight"): spec})

    x = torch.randn(2, 4)
    ready = prepare_pt2e(torch.export.export(Model(), (x,)), FunctionQuantizer(annotate))
    with verified_passes():
        done = convert_pt2e(ready)
    stored = [n for n, b in done.named_buffers() if b.dtype == torch.int8]
    assert len(stored) == 2
    assert not list(done.parameters())
    assert_same(done(x), convert_pt2e(ready, fold_quantize=False)(x))


def test_what_the_graph_does_not_read_is_dropped() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
            self.unused = nn.Sequential(nn.Linear(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            self.unused(x)
            return self.block(x)

    model = imported(Model(), torch.randn(2, 4))
    (dead,) = [n for n in nodes_of(model, ops.LINEAR) if not n.users]
    model.graph.erase_node(dead)
    with verified_passes():
        run_passes(model, [RemoveUnusedConstants(), RemoveUnusedAttributes()])
    assert sorted(dict(model.named_parameters())) == [
        "block.0.bias",
        "block.0.weight",
        "block.1.bias",
        "block.1.weight",
    ]
    assert "unused" not in dict(model.named_children())
