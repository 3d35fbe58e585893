"""Weights behind chains, lifted constants, tied tensors and views."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support.every_operator import quantizers
from support.flow import quantized
from support.nodes import nodes_of
from support.results import assert_same
from support.small_quantizers import (
    ACTIVATION,
    DYNAMIC,
    FunctionQuantizer,
    SmallQuantizer,
)
from torch import Tensor, nn
from torch.fx import Node

from pt2q import (
    QuantizationAnnotation,
    convert_pt2e,
    prepare_pt2e,
    sqnr,
)
from pt2q.ir import ops

pytestmark = [
    pytest.mark.filterwarnings("ignore::pt2q.errors.NothingQuantizedWarning"),
    pytest.mark.usefixtures("every_pass_is_verified"),
]


class Reached(nn.Module):
    """A weight that is read through a chain of operators that know their result beforehand."""

    def __init__(self, chain: Any, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.chain = chain
        self.weight = nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.chain(self.weight))


CHAINS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "transpose": (lambda w: w.t(), (8, 6)),
    "view": (lambda w: w.view(6, 8), (2, 3, 8)),
    "cast": (lambda w: w.half().float(), (6, 8)),
    "permute, reshape": (lambda w: w.permute(2, 0, 1).reshape(6, 8), (2, 4, 6)),
    "scaled, sliced": (lambda w: (w * 2.0 + 0.5)[1:7], (8, 8)),
    "einsum": (lambda w: torch.einsum("abc,c->ab", w, torch.ones(3) / 3), (6, 8, 3)),
    "idle dropout": (lambda w: nn.functional.dropout(w, 0.1, training=False), (6, 8)),
    "normalized": (lambda w: w / w.norm(dim=1, keepdim=True), (6, 8)),
}


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("spec", [ACTIVATION, DYNAMIC], ids=["static", "dynamic"])
def test_weights_are_folded_through_chains(name: str, spec: Any) -> None:
    chain, shape = CHAINS[name]
    model, x = Reached(chain, shape).eval(), torch.randn(5, 8)
    done = quantized(model, SmallQuantizer(spec), x)
    assert sqnr(model(x), done(x)) > 30
    (linear,) = nodes_of(done, ops.LINEAR)
    stored = linear.args[1].args[0]
    assert stored.op == "get_attr" and done.get_buffer(stored.target).dtype == torch.int8
    assert "weight" not in done.state_dict()
    assert sum(t.numel() for t in done.state_dict().values()) <= 6 * 8 + 2 * 6


class Einsum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 8, 4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bhi,hij->bhj", x, self.weight)


def test_weights_of_a_decomposed_einsum_are_folded() -> None:
    """A product of three-dimensional tensors, its weight reached through permutations."""

    def annotate(node: Node) -> QuantizationAnnotation | None:
        if not ops.is_op(node, ops.BMM):
            return None
        return QuantizationAnnotation(dict.fromkeys(node.all_input_nodes, ACTIVATION), ACTIVATION)

    model, x = Einsum().eval(), torch.randn(3, 2, 8)
    program = torch.export.export(model, (x,)).run_decompositions()
    ready = prepare_pt2e(program, FunctionQuantizer(annotate))
    ready(x)
    done = convert_pt2e(ready)
    assert sqnr(model(x), done(x)) > 30
    (stored,) = [b for b in done.state_dict().values()]
    assert stored.dtype == torch.int8 and stored.numel() == 64


class Lifted(nn.Module):
    """Constants that stand in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        shift = torch.tensor([1.0, -2.0, 3.0, 0.5])
        weight = torch.tensor([[0.5, 1.0, 0.0, 2.0]] * 4)
        return nn.functional.linear(self.linear(x) + shift, weight) + shift


@pytest.mark.parametrize("name", ["everything", "static", "dynamic", "xnnpack"])
def test_lifted_constants(name: str) -> None:
    model, x = Lifted().eval(), torch.randn(5, 4)
    done = quantized(model, quantizers()[name], x)
    assert sqnr(model(x), done(x)) > 25
    assert_same(torch.export.export(copy.deepcopy(done), (x,)).module()(x), done(x))
    if name == "everything":  # what is done to a constant is done once, not in every call
        assert not [n for n in done.graph.nodes if "lift_fresh" in n.name or "detach" in n.name]
        floats = {n for n, t in done.state_dict().items() if t.is_floating_point()}
        assert floats == set()


class OneStorage(nn.Module):
    """Two weights that are parts of one, a bias that is shared, a weight that is tied."""

    def __init__(self) -> None:
        super().__init__()
        whole = torch.randn(8, 4)
        self.one, self.two, self.three = (nn.Linear(4, 4) for _ in range(3))
        self.one.weight, self.two.weight = nn.Parameter(whole[:4]), nn.Parameter(whole[4:])
        self.two.bias = self.one.bias
        self.three.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.three(self.two(self.one(x)).relu())


@pytest.mark.parametrize("name", ["everything", "static", "dynamic"])
def test_tied_tensors_and_views_keep_their_identity(name: str) -> None:
    model, x = OneStorage().eval(), torch.randn(5, 4)
    ready = prepare_pt2e(torch.export.export(model, (x,)), quantizers()[name])
    own = dict(ready.named_parameters(remove_duplicate=False))
    theirs = dict(model.named_parameters(remove_duplicate=False))
    shared = [n for n, p in own.items() if n in theirs and p.data_ptr() == theirs[n].data_ptr()]
    assert len(shared) == len(own) and len({id(p) for p in own.values()}) == 4
    ready(x)
    done = convert_pt2e(ready)
    assert sqnr(model(x), done(x)) > 25
    weights = [b for n, b in done.named_buffers() if n.endswith("weight_quantized")]
    assert len(weights) == 2
    with torch.no_grad():
        model.one.weight.mul_(2)  # the float model's tensors are not those of the converted
    assert all(b.dtype == torch.int8 for b in weights)
