"""A word about what is so small that its scale ends at the smallest one its observer may give."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from pt2q.errors import SmallestScaleWarning
from pt2q.listing import listed


def warn_of_smallest_scales(
    calls: Sequence[tuple[Node, Any]], qparams: Mapping[int, tuple[Tensor, Tensor]]
) -> None:
    """Name the tensors that a floor of scales rounds to few integers or to zero.

    Args:
        calls: of observers.
        qparams: what they found, by identity.
    """
    seen = {id(o): (node, o) for node, o in reversed(calls) if id(o) in qparams}
    words = [
        f"{_watched(node).name}: {found}"
        for node, observer in reversed(seen.values())
        if (found := _at_floor(observer, qparams[id(observer)][0]))
    ]
    if words:
        warnings.warn(
            listed(
                f"{len(words)} observer(s) watch values too small for the smallest scale that they "
                "may give, which are lost; give them a smaller eps, or scale the layer",
                words,
            ),
            SmallestScaleWarning,
            stacklevel=2,
        )


def _watched(node: Node) -> Node:
    """What observers watch, one behind the other."""
    source = node.args[0]
    assert isinstance(source, Node)
    return _watched(source) if source.op == "call_module" else source


def _at_floor(observer: Any, scale: Tensor) -> str:
    """What of a tensor is at the floor; "" where nothing is, or only zeros are."""
    watched = getattr(observer, "activation_post_process", observer)
    floor = getattr(watched, "eps", None)
    low, high = getattr(watched, "min_val", None), getattr(watched, "max_val", None)
    if floor is None or not isinstance(low, Tensor) or not isinstance(high, Tensor):
        return ""
    largest = torch.maximum(-low, high).reshape(-1).to(scale)
    if largest.numel() != scale.numel():
        return ""
    count = int(((scale.reshape(-1) <= float(floor)) & (largest > 0)).sum())
    where = f" of {count} of {scale.numel()} channels" if scale.numel() > 1 else ""
    return f"a scale{where} at {float(floor):.3g}" if count else ""
