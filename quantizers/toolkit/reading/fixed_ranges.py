"""Keep grids inside the ranges of what relu and its kin give, so that runtimes can drop these."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from pt2q.ir.ops import (
    CAT,
    COPY,
    DROPOUT,
    HARDTANH,
    MAX_POOL2D,
    PERMUTE,
    RELU,
    RELU6,
    RESHAPE,
    SUBSET,
    UPSAMPLE_NEAREST,
    argument,
    is_op,
)
from pt2q.observers import ObserverBase
from pt2q.quantizers.toolkit.reading.tensor_roles import float_activations
from pt2q.spec import EdgeOrNode

Range = tuple[float, float]

_CARRIERS = CAT | COPY | DROPOUT | MAX_POOL2D | PERMUTE | RESHAPE | SUBSET | UPSAMPLE_NEAREST
_INF = float("inf")


def fixed_range_of(node: Node, known: dict[Node, Range]) -> Range:
    """Range that a tensor cannot leave, 0 included; infinite where none are known.

    Args:
        node: what computes the tensor.
        known: answers so far, filled in.
    """
    stack = [node]
    while stack:
        at = stack[-1]
        sources = float_activations(at) if is_op(at, _CARRIERS) else ()
        waiting = [source for source in sources if source not in known]
        if waiting:
            stack.extend(waiting)
            continue
        known[at] = _union([known[source] for source in sources]) if sources else _own(at)
        stack.pop()
    return known[node]


def _own(node: Node) -> Range:
    if is_op(node, RELU):
        return 0.0, _INF
    if is_op(node, RELU6):
        return 0.0, 6.0
    if is_op(node, HARDTANH):
        low, high = argument(node, "min_val"), argument(node, "max_val")
        return min(0.0, float(low)), max(0.0, float(high))
    return -_INF, _INF


def _union(ranges: list[Range]) -> Range:
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def keep_inside_fixed_ranges(observers: dict[EdgeOrNode, Any]) -> None:
    """Replace observers of bounded values by bounded ones; groups stay shared.

    Args:
        observers: by edge and node, as quantizers see them before insertion.
    """
    groups: dict[int, list[EdgeOrNode]] = {}
    for key, observer in observers.items():
        if isinstance(observer, ObserverBase):
            groups.setdefault(id(observer), []).append(key)
    known: dict[Node, Range] = {}
    for keys in groups.values():
        values = {key if isinstance(key, Node) else key[0] for key in keys}
        low, high = _union([fixed_range_of(value, known) for value in values])
        if (low, high) != (-_INF, _INF):
            observers.update(dict.fromkeys(keys, observers[keys[0]].bounded(low, high)))
