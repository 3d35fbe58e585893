"""The plan: sharing as a union that knows no order, and errors that name what is wrong."""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.golden import assert_golden
from torch.fx import Graph, Node

from pt2q import (
    DerivedQuantizationSpec,
    FixedQParamsQuantizationSpec,
    MinMaxObserver,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
    QuantizationAnnotation,
    QuantizationSpec,
    SharedQuantizationSpec,
)
from pt2q.errors import AnnotationError, SharingError
from pt2q.spec.plan import Plan, build_plan
from pt2q.spec.specs import QUANT_ANNOTATION_KEY, EdgeOrNode, QuantizationSpecBase

aten = torch.ops.aten
INT8 = QuantizationSpec(torch.int8, MinMaxObserver, -128, 127, torch.per_tensor_affine)
UINT8 = QuantizationSpec(torch.uint8, MinMaxObserver, 0, 255, torch.per_tensor_affine)
Shared = SharedQuantizationSpec


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


@pytest.fixture
def b() -> Builder:
    return Builder()


@pytest.fixture
def line(b: Builder) -> list[Node]:
    """x -> relu -> relu_1 -> ... -> relu_4"""
    nodes = [b.input("x")]
    for _ in range(5):
        nodes.append(b.call(aten.relu.default, nodes[-1]))
    return nodes


# ------------------------------------------------------------------------------------- sharing


def test_nothing_annotated_is_an_empty_plan(b: Builder, line: list[Node]) -> None:
    assert b.plan() == Plan((), {}, ())


def test_a_shared_spec_may_point_at_a_later_node(b: Builder, line: list[Node]) -> None:
    x, first, *_, last = line
    annotate(first, {x: Shared(last)})
    annotate(last, output=INT8)
    plan = b.plan()
    assert groups_of(plan) == {frozenset({(x, first), last})}
    assert plan.groups[0].spec is INT8


def test_chains_of_shared_references(b: Builder, line: list[Node]) -> None:
    _, *relus = line
    for node, follower in pairwise(relus):
        annotate(node, output=Shared(follower))
    annotate(relus[-1], output=UINT8)
    plan = b.plan()
    assert groups_of(plan) == {frozenset(relus)}
    assert plan.groups[0].spec is UINT8


def test_a_long_chain_is_no_matter(b: Builder) -> None:
    at = b.input("x")
    nodes = [at]
    for _ in range(3000):
        at = b.call(aten.relu.default, at)
        nodes.append(at)
    for node, follower in pairwise(nodes):
        annotate(node, output=Shared(follower))
    annotate(nodes[-1], output=INT8)
    assert len(b.plan().groups) == 1


def test_references_of_two_quantizers_chain(b: Builder) -> None:
    # One quantizer annotates add -> relu, the other cat, which refers to an edge of the first.
    x, y = b.input("x"), b.input("y")
    add = b.call(aten.add.Tensor, x, y)
    relu = b.call(aten.relu.default, add)
    cat = b.call(aten.cat.default, [relu, x])
    annotate(add, {x: INT8, y: Shared((x, add))}, Shared((relu, cat)))
    annotate(cat, {relu: INT8, x: Shared((relu, cat))}, Shared((x, cat)))
    assert groups_of(b.plan()) == {frozenset({(x, add), (y, add), add, (relu, cat), (x, cat), cat})}


def test_equal_specs_on_one_value_share_implicitly(b: Builder, line: list[Node]) -> None:
    _, first, *_ = line
    other = b.call(aten.tanh.default, first)
    annotate(first, output=INT8)
    annotate(other, {first: QuantizationSpec(**{**INT8.__dict__})})  # equal, not the same
    assert groups_of(b.plan()) == {frozenset({first, (first, other)})}


def test_unequal_specs_on_one_value_do_not(b: Builder, line: list[Node]) -> None:
    _, first, second, *_ = line
    annotate(first, output=INT8)
    annotate(second, {first: UINT8})
    assert groups_of(b.plan()) == {frozenset({first}), frozenset({(first, second)})}


@pytest.mark.parametrize(("producer", "consumer"), [(True, False), (False, True), (False, False)])
def test_implicit_sharing_needs_both(
    b: Builder, line: list[Node], producer: bool, consumer: bool
) -> None:
    _, first, second, *_ = line
    annotate(first, output=INT8, implicit=producer)
    annotate(second, {first: INT8}, implicit=consumer)
    assert groups_of(b.plan()) == {frozenset({first}), frozenset({(first, second)})}


def test_explicit_sharing_works_without_implicit(b: Builder, line: list[Node]) -> None:
    _, first, second, *_ = line
    annotate(first, output=INT8, implicit=False)
    annotate(second, {first: Shared(first)}, implicit=False)
    assert groups_of(b.plan()) == {frozenset({first, (first, second)})}


def test_edges_without_their_producer_share(b: Builder) -> None:
    x = b.input("x")
    readers = [b.call(aten.relu.default, x) for _ in range(3)]
    for reader in readers[:2]:
        annotate(reader, {x: INT8})
    annotate(readers[2], {x: INT8}, implicit=False)
    assert groups_of(b.plan()) == {
        frozenset({(x, readers[0]), (x, readers[1])}),
        frozenset({(x, readers[2])}),
    }


def test_references_written_as_lists_of_two_are_edges(b: Builder, line: list[Node]) -> None:
    x, first, *_ = line
    annotate(first, {x: INT8}, Shared([x, first]))  # type: ignore[arg-type]
    assert groups_of(b.plan()) == {frozenset({(x, first), first})}


# -------------------------------------------------------------------------------------- errors


def test_a_circle_names_its_nodes(b: Builder, line: list[Node]) -> None:
    _, one, two, three, *_ = line
    annotate(one, output=Shared(two))
    annotate(two, output=Shared(three))
    annotate(three, output=Shared(one))
    with pytest.raises(SharingError, match=r"circle: relu, relu_1, relu_2, relu;"):
        b.plan()


def test_a_chain_into_a_circle_is_found(b: Builder, line: list[Node]) -> None:
    _, one, two, three, *_ = line
    annotate(one, output=Shared(two))
    annotate(two, output=Shared(three))
    annotate(three, output=Shared(two))
    with pytest.raises(SharingError, match="circle"):
        b.plan()


def test_a_tensor_that_shares_with_itself(b: Builder, line: list[Node]) -> None:
    annotate(line[1], output=Shared(line[1]))
    with pytest.raises(SharingError, match="circle: relu, relu;"):
        b.plan()


def test_a_reference_to_what_nobody_annotated(b: Builder, line: list[Node]) -> None:
    x, one, two, *_ = line
    annotate(two, output=Shared((x, one)))
    with pytest.raises(SharingError, match=r"relu_1 shares the parameters of x -> relu, but"):
        b.plan()
    annotate(one, {x: None})
    with pytest.raises(SharingError, match="nothing annotates that"):
        b.plan()


def test_equal_specs_reached_along_two_ways_are_one_group(b: Builder, line: list[Node]) -> None:
    _, one, two, three, *_ = line
    annotate(one, output=INT8)
    annotate(two, {one: Shared(three)}, UINT8)
    annotate(three, {two: UINT8}, INT8)
    assert groups_of(b.plan()) == {
        frozenset({one, (one, two), three}),
        frozenset({two, (two, three)}),
    }


def test_an_edge_that_does_not_exist(b: Builder, line: list[Node]) -> None:
    x, _, two, *_ = line
    annotate(two, {x: INT8})
    with pytest.raises(AnnotationError, match=r"relu_1 is annotated on an edge from x.*\['relu'\]"):
        b.plan()


def test_something_that_is_no_spec(b: Builder, line: list[Node]) -> None:
    annotate(line[1], output="int8")  # type: ignore[arg-type]
    with pytest.raises(AnnotationError, match="relu is annotated with a str"):
        b.plan()


# ------------------------------------------------------------------------------------- derived


def test_derived_groups_come_after_their_sources(b: Builder) -> None:
    x, w, bias = b.input("x"), b.constant("w"), b.constant("bias")
    linear = b.call(aten.linear.default, x, w, bias)
    inputs = {bias: derived((x, linear), (w, linear)), x: INT8, w: UINT8}
    annotate(linear, inputs, INT8)  # type: ignore[arg-type]
    plan = b.plan()
    at = plan.group_of[(bias, linear)]
    sources = plan.groups[at].derived_from
    assert [plan.groups[s].members for s in sources] == [((x, linear),), ((w, linear),)]
    assert all(s < at for s in sources)


def test_derived_from_derived_and_from_shared(b: Builder, line: list[Node]) -> None:
    x, one, two, _, four, five = line
    annotate(one, {x: derived(two)}, derived(two, five))
    annotate(two, output=derived(four))
    annotate(four, output=Shared(five))
    annotate(five, output=INT8)
    plan = b.plan()
    for index, group in enumerate(plan.groups):
        assert all(source < index for source in group.derived_from)
    source = plan.groups[plan.group_of[one]].derived_from
    assert source == (plan.group_of[two], plan.group_of[five])
    assert plan.group_of[four] == plan.group_of[five]


def test_derived_in_a_circle(b: Builder, line: list[Node]) -> None:
    _, one, two, three, *_ = line
    annotate(one, output=derived(two))
    annotate(two, output=derived(three, one))
    annotate(three, output=INT8)
    with pytest.raises(SharingError, match=r"derived from each other in a circle: relu"):
        b.plan()
    annotate(one, output=derived(one))
    annotate(two, output=INT8)
    with pytest.raises(SharingError, match="circle"):
        b.plan()


def test_derived_from_what_is_not_quantized(b: Builder, line: list[Node]) -> None:
    _, one, two, *_ = line
    annotate(one, output=derived(two))
    with pytest.raises(SharingError, match="relu derives its parameters from relu_1, which is not"):
        b.plan()


# ------------------------------------------------------------------------------------- skipped


def skipped(plan: Plan) -> dict[EdgeOrNode, str]:
    return dict(plan.skipped)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float64])
def test_what_cannot_be_quantized_is_left_alone_with_its_sharers(
    b: Builder, dtype: torch.dtype
) -> None:
    x, tokens = b.input("x"), b.input("tokens", dtype)
    add = b.call(aten.add.Tensor, tokens, tokens, dtype=dtype)
    relu = b.call(aten.relu.default, x)
    tanh = b.call(aten.tanh.default, relu)
    annotate(add, {tokens: INT8}, INT8)
    annotate(relu, {x: Shared((tokens, add))}, INT8)
    annotate(tanh, {relu: Shared((x, relu))}, derived(relu, add))
    plan = b.plan()
    assert groups_of(plan) == {frozenset({relu})}
    reasons = skipped(plan)
    assert set(reasons) == {(tokens, add), add, (x, relu), (relu, tanh), tanh}
    assert "tokens -> add" in reasons[(x, relu)]
    assert "add" in reasons[tanh]


def test_tuples_are_left_alone(b: Builder, line: list[Node]) -> None:
    split = b.call(aten.split.Tensor, line[0], 1)
    split.meta["val"] = [split.meta["val"]] * 2
    annotate(split, output=INT8)
    assert skipped(b.plan()) == {split: "not a floating point tensor"}


def test_writes_in_place_are_left_alone_with_their_sharers(b: Builder) -> None:
    state, x = b.constant("state"), b.input("x")
    add = b.call(aten.add_.Tensor, state, x)
    relu = b.call(aten.relu.default, add)
    annotate(add, {state: INT8, x: Shared((state, add))}, INT8)
    annotate(relu, {add: Shared((x, add))})
    plan = b.plan()
    assert groups_of(plan) == {frozenset({add})}
    assert "written in place" in skipped(plan)[(state, add)]
    assert set(skipped(plan)) == {(state, add), (x, add), (add, relu)}


def test_a_write_that_nobody_else_sees_is_quantized(b: Builder, line: list[Node]) -> None:
    in_place = b.call(aten.relu_.default, line[-1])
    annotate(in_place, {line[-1]: INT8}, INT8)
    assert groups_of(b.plan()) == {frozenset({(line[-1], in_place)}), frozenset({in_place})}


def test_views_of_what_is_written_later_are_left_alone(b: Builder, line: list[Node]) -> None:
    y = line[-1]
    view = b.call(aten.slice.Tensor, y, 0, 0, 1)
    early = b.call(aten.tanh.default, view)
    write = b.call(aten.fill_.Scalar, view, 2.0)
    late = b.call(aten.slice.Tensor, y, 0, 0, 1)
    annotate(view, {y: INT8})
    annotate(early, {view: INT8})
    annotate(write, {view: INT8})
    annotate(late, {y: INT8})
    plan = b.plan()
    assert set(skipped(plan)) == {(y, view), (view, write)}
    assert groups_of(plan) == {frozenset({(view, early)}), frozenset({(y, late)})}


# -------------------------------------------------------------------------------------- golden


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


# ----------------------------------------------------------------------------------- reference


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
