"""Which tensors share one set of parameters."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from support.plan_builder import INT8, UINT8, Builder, annotate, groups_of
from torch.fx import Node

from pt2q import (
    MovingAverageMinMaxObserver,
    QuantizationSpec,
    SharedQuantizationSpec,
)
from pt2q.spec.plan import Plan

Shared = SharedQuantizationSpec


aten = torch.ops.aten


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


def test_specs_that_differ_in_their_observer_alone_share_the_first(
    b: Builder, line: list[Node]
) -> None:
    _, first, *_ = line
    one, other = b.call(aten.tanh.default, first), b.call(aten.tanh.default, first)
    averaged = replace(INT8, observer_or_fake_quant_ctr=MovingAverageMinMaxObserver)
    annotate(one, {first: averaged})
    annotate(other, {first: INT8})
    plan = b.plan()
    assert groups_of(plan) == {frozenset({(first, one), (first, other)})}
    assert plan.groups[0].spec is averaged
    annotate(first, output=INT8)
    plan = b.plan()
    assert groups_of(plan) == {frozenset({first, (first, one), (first, other)})}
    assert plan.groups[0].spec is INT8
    annotate(other, {first: INT8}, implicit=False)
    assert groups_of(b.plan()) == {frozenset({first, (first, one)}), frozenset({(first, other)})}


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
