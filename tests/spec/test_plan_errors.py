"""Circles, references to nothing, edges that do not exist."""

from __future__ import annotations

import pytest
from support.plan_builder import INT8, UINT8, Builder, annotate, groups_of
from torch.fx import Node

from pt2q import (
    SharedQuantizationSpec,
)
from pt2q.errors import AnnotationError, SharingError

Shared = SharedQuantizationSpec


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
