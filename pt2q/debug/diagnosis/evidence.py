"""What is seen of one group of tensors: its values in float, and what its rounding does to them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pt2q.algorithms.engine import Lane, Taps, Walk
from pt2q.algorithms.engine.rounding import Grid, grid_of, is_integer
from pt2q.debug.sensitivities.subjects import Rounded, Subject
from pt2q.ir.module import QuantGraphModule
from pt2q.observers.protocol import has_data

MASKED = -1e3
"""Values below this, where all others are far above, take no part in a softmax."""


@dataclass(frozen=True)
class Evidence:
    """What is seen of one group of tensors.

    Args:
        largest: the largest magnitude.
        channels: the largest magnitude of a channel over that of the median channel, along the
            dimension where this is most.
        outlier: the largest magnitude over that which one in a thousand exceeds.
        clipped: the share of the numbers beyond the range of integers.
        levels: the share of the integers that occur.
        used: the share of the range that the values take; much below 1 where calibration has seen
            larger ones.
        bits: how many bits tell the integers apart; 0 where they are no grid.
        at_floor: the share of the scales that are the smallest allowed.
        masked: the share of the numbers that only mask others.
        per_channel: there is more than one scale.
        dynamic: parameters are computed from each input.
    """

    largest: float = 0.0
    channels: float = 1.0
    outlier: float = 1.0
    clipped: float = 0.0
    levels: float = 1.0
    used: float = 1.0
    bits: float = 0.0
    at_floor: float = 0.0
    masked: float = 0.0
    per_channel: bool = False
    dynamic: bool = False


@torch.no_grad()
def evidence_of(
    model: QuantGraphModule,
    subjects: Sequence[Subject],
    calls: Iterable[Rounded],
    batches: Sequence[Any],
) -> dict[str, Evidence]:
    """What is seen of groups, by their names.

    Args:
        model: prepared and calibrated.
        subjects: groups of tensors.
        calls: all calls of its observers.
        batches: the data; all values of the groups are held at once.
    """
    wanted = frozenset().union(*(s.observers for s in subjects))
    chosen = [c for c in calls if id(c.observer) in wanted]
    seen = _values(model, chosen, batches)
    found = {}
    for subject in subjects:
        mine = [c for c in chosen if id(c.observer) in subject.observers]
        tensors = [t for c in mine for t in seen.get(id(c.node), ())]
        if tensors:
            found[subject.name] = _evidence(mine[0].observer, tensors)
    return found


def _values(
    model: QuantGraphModule, calls: Sequence[Rounded], batches: Sequence[Any]
) -> dict[int, list[Tensor]]:
    """What reaches each call in float, by the identity of the call."""
    lane = Lane.floating()
    with Walk(model, batches, [lane]) as walk:
        taps = Taps.on(c.node for c in calls)
        for _ in walk.replay([walk.schedule.nodes[-1]], lane, taps=taps):
            pass
    found = {id(node): [call.args[0] for call in seen] for node, seen in taps.take().items()}
    for call in calls:
        if call.source.op == "get_attr":
            found[id(call.node)] = [lane.tensor(call.owner, str(call.source.target))]
    return found


def _evidence(observer: Any, tensors: Sequence[Tensor]) -> Evidence:
    values = [t.detach().float() for t in tensors if t.is_floating_point() and t.numel()]
    if not values:
        return Evidence()
    flat = torch.cat([v.flatten() for v in values])
    flat = flat[torch.isfinite(flat)]
    masked = flat < MASKED
    bulk = flat[~masked].abs()
    share = float(masked.float().mean()) if bulk.numel() and float(bulk.max()) < 100 else 0.0
    large = _quantile(flat.abs(), 0.999)
    plain = Evidence(
        largest=float(flat.abs().max()),
        channels=max(map(_channel_ratio, values)),
        outlier=float(flat.abs().max()) / max(large, 1e-30),
        masked=share,
        dynamic=bool(getattr(observer, "is_dynamic", False)),
    )
    rank = values[0].dim()
    if not is_integer(observer, rank):
        return plain
    if not has_data(observer):
        observer(values[0])
    return _with_grid(plain, grid_of(observer, rank), values)


def _with_grid(plain: Evidence, grid: Grid, values: Sequence[Tensor]) -> Evidence:
    codes = [_codes(grid, v) for v in values]
    flat = torch.cat([c.flatten() for c in codes])
    inside = flat.clamp(grid.quant_min, grid.quant_max)
    count = grid.quant_max - grid.quant_min + 1
    most = min(count, inside.numel())
    kinds = int(inside.unique().numel())
    span = float(inside.max() - inside.min() + 1) / count
    floor = max(grid.floor, 0.0)
    per_scale = grid.scale <= floor * 1.001 if floor else torch.zeros_like(grid.scale).bool()
    return Evidence(
        plain.largest,
        plain.channels,
        plain.outlier,
        float((flat != inside).float().mean()),
        kinds / most,
        span,
        math.log2(count),
        float(per_scale.float().mean()),
        plain.masked,
        grid.scale.numel() > 1,
        plain.dynamic,
    )


def _codes(grid: Grid, value: Tensor) -> Tensor:
    """The integers before they are clipped."""
    scale = grid.spread(grid.scale, value)
    zero = grid.spread(grid.zero_point.float(), value)
    return (value / scale).round() + zero


def _quantile(values: Tensor, share: float) -> float:
    if values.numel() < 2:
        return float(values.max()) if values.numel() else 0.0
    place = max(math.ceil(share * values.numel()), 1)
    return float(values.kthvalue(place).values)


def _channel_ratio(value: Tensor) -> float:
    """The largest over the median channel, along the dimension where that is most."""
    found = [1.0]
    for dim in range(value.dim()):
        if value.shape[dim] < 4:
            continue
        most = value.abs().transpose(0, dim).flatten(1).amax(1) if value.dim() > 1 else value.abs()
        middle = float(most.median())
        found.append(float(most.max()) / middle if middle > 0 else 1.0)
    return max(found)
