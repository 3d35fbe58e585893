"""Where a value is computed: a node, in the body of a control flow operator or outside."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from torch.fx import Node

Place = tuple[str, Node]
"""The path of the body, such as ``true_graph_0.`` ("" outside), and the node."""


def place_name(place: Place) -> str:
    """The name of a node after the path of its body."""
    return place[0] + place[1].name


def place_tag(place: Place) -> tuple[str, str]:
    """A place by name: the same in every copy of a model."""
    return place[0], place[1].name


def nearest_readers(place: Place, among: set[Place]) -> set[Place]:
    """The values that are computed from one, directly or through others.

    Args:
        place: where the one is computed.
        among: the values that count; what lies behind them does not.
    """
    path, node = place
    return set(_readers(path, list(node.users), among))


def reader_of(place: Place, among: set[Place]) -> Place:
    """The first value that a call gives, or that is computed from what it gives.

    Args:
        place: of the call.
        among: the values that count.

    Returns:
        ``place`` itself where there is none.
    """
    path, node = place
    return next(_readers(path, [node], among), place)


def _readers(path: str, start: list[Node], among: set[Place]) -> Iterator[Place]:
    waiting, seen = deque(start), set(start)
    while waiting:
        at = waiting.popleft()
        if (path, at) in among:
            yield path, at
            continue
        new = [user for user in at.users if user not in seen]
        seen.update(new)
        waiting.extend(new)
