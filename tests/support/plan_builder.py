"""Graphs built node by node, and annotated by hand."""

from __future__ import annotations

import torch
from torch.fx import Graph, Node

from pt2q import (
    DerivedQuantizationSpec,
    MinMaxObserver,
    QuantizationAnnotation,
    QuantizationSpec,
)
from pt2q.spec import QUANT_ANNOTATION_KEY, EdgeOrNode, QuantizationSpecBase
from pt2q.spec.plan import Plan, build_plan

INT8 = QuantizationSpec(torch.int8, MinMaxObserver, -128, 127, torch.per_tensor_affine)


UINT8 = QuantizationSpec(torch.uint8, MinMaxObserver, 0, 255, torch.per_tensor_affine)


def ones(observers: object) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones(1), torch.zeros(1, dtype=torch.int64)


def derived(*sources: EdgeOrNode) -> DerivedQuantizationSpec:
    return DerivedQuantizationSpec(sources, ones, torch.int32)


class Builder:
    """A graph made by hand; every value is a small float tensor unless said otherwise."""

    def __init__(self) -> None:
        self.graph = Graph()

    def input(self, name: str, dtype: torch.dtype = torch.float32) -> Node:
        return self._typed(self.graph.placeholder(name), dtype)

    def constant(self, name: str, dtype: torch.dtype = torch.float32) -> Node:
        return self._typed(self.graph.create_node("get_attr", name), dtype)

    def call(self, target: object, *args: object, dtype: torch.dtype = torch.float32) -> Node:
        name = target._schema.name.removeprefix("aten::")  # type: ignore[attr-defined]
        return self._typed(self.graph.create_node("call_function", target, args, {}, name), dtype)  # type: ignore[arg-type]

    def _typed(self, node: Node, dtype: torch.dtype) -> Node:
        node.meta["val"] = torch.empty(2, 2, dtype=dtype, device="meta")
        return node

    def plan(self) -> Plan:
        return build_plan(self.graph)


def annotate(
    node: Node,
    inputs: dict[Node, QuantizationSpecBase | None] | None = None,
    output: QuantizationSpecBase | None = None,
    implicit: bool = True,
) -> None:
    node.meta[QUANT_ANNOTATION_KEY] = QuantizationAnnotation(inputs or {}, output, implicit)


def groups_of(plan: Plan) -> set[frozenset[EdgeOrNode]]:
    assert sorted(plan.group_of.values()) == sorted(
        index for index, group in enumerate(plan.groups) for _ in group.members
    )
    return {frozenset(group.members) for group in plan.groups}
