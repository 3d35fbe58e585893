"""Observers: their places, numbers and names; who shares storage."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.flow import imported
from support.golden import exact, exact_input
from support.passes import Fork, annotate_all_edges
from support.small_quantizers import (
    FunctionQuantizer,
)
from torch import Tensor, nn
from torch.fx import Node

from pt2q import QuantGraphModule, QuantizationAnnotation
from pt2q.errors import AnnotationError
from pt2q.ir.graph import Names
from pt2q.ir.storage import StorageMap
from pt2q.passes import (
    InsertObservers,
    run_passes,
    verified_passes,
)
from pt2q.spec import QuantizationSpec
from pt2q.spec.plan import build_plan

pytestmark = pytest.mark.usefixtures("no_gradients")


aten = torch.ops.aten


def insert(model: QuantGraphModule, annotate: Any) -> QuantGraphModule:
    FunctionQuantizer(annotate).annotate(model)
    with verified_passes():
        return run_passes(model, [InsertObservers(build_plan(model.graph))])


def test_observers_are_numbered_and_placed_behind_what_they_watch() -> None:
    model = insert(imported(exact(Fork()), exact_input(2, 4)), annotate_all_edges)
    nodes = list(model.graph.nodes)
    kinds = [n.op for n in nodes]
    assert "call_function" not in kinds[: len(kinds) - kinds[::-1].index("placeholder")]


def test_names_of_the_model_are_not_taken() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("activation_post_process_0", torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.activation_post_process_0

    model = insert(imported(Model(), torch.randn(4)), annotate_all_edges)
    assert torch.equal(model.activation_post_process_0, torch.ones(4))
    assert hasattr(model, "activation_post_process_1")


def test_an_observer_that_is_none_is_refused() -> None:
    spec = QuantizationSpec(torch.int8, lambda **_: nn.Identity(), -128, 127)

    def annotate(node: Node) -> QuantizationAnnotation | None:
        if node.target is not aten.tanh.default:
            return None
        return QuantizationAnnotation({node.args[0]: spec})

    model = imported(Fork(), torch.randn(2, 4))
    with pytest.raises(AnnotationError, match=r"x -> tanh: .* made a Identity.*calculate_qparams"):
        insert(model, annotate)


def test_fresh_names() -> None:
    names = Names({"a", "a_0", "a_2"})
    assert [names.fresh("a"), names.fresh("b"), names.fresh("b")] == ["a_1", "b", "b_1"]
    assert [names.numbered("a") for _ in range(3)] == ["a_3", "a_4", "a_5"]
    assert names.numbered("c") == "c_0"


class Writes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("state", torch.zeros(2, 4))
        self.register_buffer("row", self.state[1])
        self.register_buffer("apart", torch.zeros(2, 4))

    state: Tensor
    row: Tensor
    apart: Tensor

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.apart
        view = y[:, :2]
        self.state.add_(x)
        view.mul_(2.0)
        return y + self.row + self.apart


def test_who_shares_storage_with_whom() -> None:
    model = imported(Writes(), torch.randn(2, 4))
    storage = StorageMap.of(model.graph)
    node = {n.name: n for n in model.graph.nodes}
    view = next(n for n in model.graph.nodes if n.target is aten.slice.Tensor)
    assert storage.root[node["row"]] is storage.root[node["state"]]
    assert storage.root[node["apart"]] is node["apart"]
    assert storage.root[view] is node["add"]
    assert storage.written_later(node["add"]) and storage.written_later(view)
    assert storage.is_mutated(node["row"]) and not storage.is_mutated(node["apart"])
    assert storage.must_write_through(node["add"], view)
    assert storage.must_write_through(node["state"], node["add_"])
    assert not storage.must_write_through(node["apart"], node["add"])
    assert storage.root[node["x"]] is node["x"]
