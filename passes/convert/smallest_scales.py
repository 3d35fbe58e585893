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
    found = _at_floor([(o, qparams[key][0]) for key, (_, o) in reversed(seen.items())])
    words = [f"{_watched(seen[key][0]).name}: {what}" for key, what in found.items()]
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


def _at_floor(found: Sequence[tuple[Any, Tensor]]) -> dict[int, str]:
    """What of tensors is at the floor, by their observer; all-zero ranges lose nothing.

    Args:
        found: observers and their scales.
    """
    known = [(o, scale.reshape(-1), *rest) for o, scale in found if (rest := _range(o, scale))]
    if not known:
        return {}
    sizes = [scale.numel() for _, scale, _, _ in known]
    largest = torch.cat([each.to("cpu", torch.float32) for _, _, each, _ in known])
    scales = torch.cat([scale.to("cpu", torch.float32) for _, scale, _, _ in known])
    floors = torch.tensor([floor for *_, floor in known]).repeat_interleave(torch.tensor(sizes))
    low = (scales <= floors) & (largest > 0)
    counts = [int(each.sum()) for each in low.split(sizes)] if bool(low.any()) else []
    return {
        id(observer): _said(count, scale.numel(), floor)
        for (observer, scale, _, floor), count in zip(known, counts, strict=False)
        if count
    }


def _said(count: int, channels: int, floor: float) -> str:
    where = f" of {count} of {channels} channels" if channels > 1 else ""
    return f"a scale{where} at {floor:.3g}"


def _range(observer: Any, scale: Tensor) -> tuple[Tensor, float] | None:
    """The largest magnitude for each scale, and the smallest scale; None where it is not known."""
    watched = getattr(observer, "activation_post_process", observer)
    floor = getattr(watched, "eps", None)
    low, high = getattr(watched, "min_val", None), getattr(watched, "max_val", None)
    if floor is None or not isinstance(low, Tensor) or not isinstance(high, Tensor):
        return None
    largest = torch.maximum(-low, high).reshape(-1)
    return (largest, float(floor)) if largest.numel() == scale.numel() else None
