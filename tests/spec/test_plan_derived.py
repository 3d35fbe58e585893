"""Groups derived from others, and groups that are left alone."""

from __future__ import annotations

import pytest
import torch
from support.plan_builder import INT8, UINT8, Builder, annotate, derived, groups_of
from torch.fx import Node

from pt2q import (
    SharedQuantizationSpec,
)
from pt2q.errors import SharingError
from pt2q.spec import EdgeOrNode
from pt2q.spec.plan import Plan

Shared = SharedQuantizationSpec


aten = torch.ops.aten


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
