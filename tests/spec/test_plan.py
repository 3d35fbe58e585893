"""A plan as text, and against a reference written anew."""

from __future__ import annotations

import random
from collections.abc import Iterable

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.golden import assert_golden
from support.plan_builder import INT8, UINT8, Builder, annotate, derived, groups_of
from torch.fx import Node

from pt2q import (
    FixedQParamsQuantizationSpec,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
    QuantizationSpec,
    SharedQuantizationSpec,
)
from pt2q.spec import EdgeOrNode

Shared = SharedQuantizationSpec


aten = torch.ops.aten


def test_text(b: Builder) -> None:
    x, tokens = b.input("x"), b.input("tokens", torch.int64)
    w, bias = b.constant("w"), b.constant("bias")
    linear = b.call(aten.linear.default, x, w, bias)
    sigmoid = b.call(aten.sigmoid.default, linear)
    cat = b.call(aten.cat.default, [sigmoid, x])
    index = b.call(aten.index.Tensor, cat, [tokens])
    weight = QuantizationSpec(
        torch.int8, PerChannelMinMaxObserver, -127, 127, torch.per_channel_symmetric, ch_axis=0
    )
    dynamic = QuantizationSpec(torch.int8, PlaceholderObserver, is_dynamic=True)
    annotate(linear, {x: INT8, w: weight, bias: derived((x, linear), (w, linear))})
    annotate(sigmoid, output=FixedQParamsQuantizationSpec(torch.uint8, 1 / 256, 0, 0, 255))
    annotate(cat, {sigmoid: dynamic, x: Shared((x, linear))}, Shared((x, cat)))
    annotate(index, {tokens: INT8})
    assert_golden("plan", str(b.plan()))


def naive_groups(
    real: dict[Node, QuantizationSpec], shared: dict[Node, Node], implicit: Iterable[Node]
) -> set[frozenset[EdgeOrNode]]:
    """Connected components by depth-first search over a list of pairs."""
    pairs: list[tuple[EdgeOrNode, EdgeOrNode]] = list(shared.items())
    for node in implicit:
        user = next(iter(node.users))
        pairs.append((node, (node, user)))
    keys: list[EdgeOrNode] = [*real, *shared, *((n, next(iter(n.users))) for n in implicit)]
    found: set[frozenset[EdgeOrNode]] = set()
    for key in keys:
        component = {key}
        waiting = [key]
        while waiting:
            at = waiting.pop()
            for one, other in pairs:
                for near, far in ((one, other), (other, one)):
                    if near == at and far not in component:
                        component.add(far)
                        waiting.append(far)
        found.add(frozenset(component))
    return found


@settings(max_examples=80, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 14))
def test_any_forest_in_any_order(seed: int, count: int) -> None:
    chosen = random.Random(seed)
    b = Builder()
    x = b.input("x")
    nodes = [b.call(aten.relu.default, x) for _ in range(count)]
    readers = {node: b.call(aten.tanh.default, node) for node in nodes}
    order = chosen.sample(nodes, count)  # a parent comes before its children here, not in the graph
    real: dict[Node, QuantizationSpec] = {}
    shared: dict[Node, Node] = {}
    spec_of: dict[Node, QuantizationSpec] = {}
    for index, node in enumerate(order):
        if index == 0 or chosen.random() < 0.3:
            spec_of[node] = real[node] = chosen.choice([INT8, UINT8])
            annotate(node, output=real[node])
        else:
            shared[node] = chosen.choice(order[:index])
            spec_of[node] = spec_of[shared[node]]
            annotate(node, output=Shared(shared[node]))
    implicit = [node for node in nodes if chosen.random() < 0.5]
    for node in implicit:
        annotate(readers[node], {node: spec_of[node]})
    plan = b.plan()
    assert groups_of(plan) == naive_groups(real, shared, implicit)
    for group in plan.groups:
        for member in group.members:
            assert group.spec == spec_of[member if isinstance(member, Node) else member[0]]
    assert plan == b.plan()
