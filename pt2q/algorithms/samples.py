"""What a layer is called with, in float and behind quantized layers, to fit on and to judge by."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from pt2q.algorithms.engine import Lane, Taps, Walk
from pt2q.algorithms.engine.runner import Call
from pt2q.algorithms.engine.walk import FLOAT, ROUNDED
from pt2q.algorithms.layers import Layer, Use, outer_node
from pt2q.algorithms.parting import fit_rows, is_check


@dataclass(frozen=True)
class Sample:
    """One call of a layer.

    Args:
        use: which call.
        floating: its input in the float model.
        rounded: its input in the quantized model.
    """

    use: Use
    floating: Tensor
    rounded: Tensor


@dataclass(frozen=True)
class Samples:
    """The calls of a layer, parted.

    Args:
        fit: those to compute a change from.
        check: those to judge it by.
        apart: none of the former is among the latter.
    """

    fit: tuple[Sample, ...]
    check: tuple[Sample, ...]
    apart: bool = True


def calls_of(walk: Walk, use: Use) -> list[list[Sample]]:
    """What a call of a layer reads, by batch; a body may be run several times in one.

    Args:
        walk: stands before the call, or where it can stop before that.
        use: the call.
    """
    at_the_stop = use.owner is walk.model and walk.schedule.position[use.node] == walk.position
    if at_the_stop and walk.schedule.is_value(use.x):
        pairs = zip(walk.values(FLOAT, use.x), walk.values(ROUNDED, use.x), strict=True)
        return [[Sample(use, one, other)] for one, other in pairs]
    rows = zip(*(_tapped(walk, use, walk.lanes[name]) for name in (FLOAT, ROUNDED)), strict=True)
    return [list(_paired(use, one, other)) for one, other in rows]


def _tapped(walk: Walk, use: Use, lane: Lane) -> Iterator[list[Call]]:
    taps, target = Taps.on([use.node]), outer_node(walk.program, use)
    for _ in walk.replay([target], lane, taps=taps):
        yield taps.take().get(use.node, [])


def _paired(use: Use, floating: list[Call], rounded: list[Call]) -> Iterator[Sample]:
    """Where the lanes went other ways in a body, the quantized input stands for both."""
    if len(floating) != len(rounded):
        floating = rounded
    for one, other in zip(floating, rounded, strict=True):
        yield Sample(use, _input(use, one), _input(use, other))


def _input(use: Use, call: Call) -> Tensor:
    for node, value in zip(use.node.args, call.args, strict=True):
        if node is use.x:
            return _copy(value)
    return _copy(next(call.kwargs[k] for k, node in use.node.kwargs.items() if node is use.x))


def _copy(value: Any) -> Tensor:
    """What a call read may be written later; a view of a cache surely is."""
    copied: Tensor = value.clone()
    return copied


def part(batches: Iterable[list[Sample]]) -> Samples:
    """Part calls into those to fit on and those to judge by.

    Args:
        batches: the calls of each batch. Those of a single batch are parted along their first
            dimension.
    """
    rows = list(batches)
    if len(rows) == 1:
        return _split(rows[0])
    groups: tuple[list[Sample], list[Sample]] = ([], [])
    for batch, calls in enumerate(rows):
        groups[is_check(batch, len(rows))].extend(calls)
    return Samples(tuple(groups[0]), tuple(groups[1]))


def _split(calls: list[Sample]) -> Samples:
    if not all(_can_be_split(sample) for sample in calls):
        return Samples(tuple(calls), tuple(calls), apart=False)
    sizes = [sample.floating.shape[0] for sample in calls]
    ends = [fit_rows(size) for size in sizes]
    return Samples(
        tuple(_narrowed(s, 0, end) for s, end in zip(calls, ends, strict=True)),
        tuple(_narrowed(s, e, n) for s, e, n in zip(calls, ends, sizes, strict=True)),
    )


def _can_be_split(sample: Sample) -> bool:
    x = sample.floating
    return x.dim() > 1 and x.shape[0] > 1 and x.shape == sample.rounded.shape


def _narrowed(sample: Sample, start: int, stop: int) -> Sample:
    return Sample(sample.use, sample.floating[start:stop], sample.rounded[start:stop])


def collect(walk: Walk, layer: Layer, seen: dict[Use, list[list[Sample]]]) -> Samples:
    """The calls of a layer, from all its uses.

    Args:
        walk: stands before the last use.
        layer: the layer.
        seen: the calls of its other uses.
    """
    last = layer.uses[-1]
    uses = [*(seen[use] for use in layer.uses[:-1]), calls_of(walk, last)]
    # What the first call rounds badly now it will not once the weight is changed: later calls are
    # taken to come after an exact one.
    uses[1:] = [[[_exact(sample) for sample in calls] for calls in rows] for rows in uses[1:]]
    return part([list(chain.from_iterable(calls)) for calls in zip(*uses, strict=True)])


def _exact(sample: Sample) -> Sample:
    return Sample(sample.use, sample.floating, sample.floating)


@torch.no_grad()
def noise(
    samples: Iterable[Sample], references: Iterable[Tensor], weight: Tensor, bias: Any
) -> float:
    """The summed squared error of a layer's outputs.

    Args:
        samples: its calls; the quantized inputs are used.
        references: what each gives in float.
        weight, bias: what the layer multiplies by and adds.
    """
    return sum(
        float((reference - sample.use.run(sample.rounded, weight, bias)).double().square().sum())
        for sample, reference in zip(samples, references, strict=True)
    )
