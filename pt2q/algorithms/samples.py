"""What a layer is called with, in float and behind quantized layers, to fit on and to judge by."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor

from pt2q.algorithms.engine import Lane, Taps, Walk
from pt2q.algorithms.engine.runner import Call
from pt2q.algorithms.engine.walk import FLOAT, ROUNDED
from pt2q.algorithms.layers import Layer, Use, outer_node
from pt2q.algorithms.parting import fit_rows, is_check
from pt2q.distributed import ALONE, Ranks

T = TypeVar("T")


@dataclass(frozen=True)
class Sample:
    """One call of a layer.

    Args:
        use: which call.
        floating: its input in the float model.
        rounded: its input in the quantized model.
        batch: the place of its batch among all.
    """

    use: Use
    floating: Tensor
    rounded: Tensor
    batch: int = 0


@dataclass(frozen=True)
class Samples:
    """The calls of a layer in the batches that this process holds, parted.

    Args:
        fit: those to compute a change from.
        check: those to judge it by.
        apart: none of the former is among the latter, here and elsewhere.
        ranks: the processes, each with its own calls.
        enough: there are some to fit on and some to judge by, here or elsewhere.
    """

    fit: tuple[Sample, ...]
    check: tuple[Sample, ...]
    apart: bool = True
    ranks: Ranks = ALONE
    enough: bool = True

    def fitted(self, measure: Callable[[Sample], T]) -> list[T]:
        """What is measured on each call to fit on, of all processes, in the order of the batches.

        Args:
            measure: gives something that pickles.
        """
        return self._of_all(self.fit, measure)

    def judged(self, measure: Callable[[Sample, int], float]) -> float:
        """The sum of what is measured on each call to judge by: exact, in whatever order.

        Args:
            measure: is given the call and its place among those of this process.
        """
        places = iter(range(len(self.check)))
        return math.fsum(self._of_all(self.check, lambda sample: measure(sample, next(places))))

    def _of_all(self, samples: Iterable[Sample], measure: Callable[[Sample], T]) -> list[T]:
        found = self.ranks.share(lambda: [(s.batch, measure(s)) for s in samples])
        # Stable: the calls of one batch are all one process's.
        rows = sorted((row for part in found for row in part), key=lambda row: row[0])
        return [value for _, value in rows]


def calls_of(walk: Walk, use: Use) -> list[list[Sample]]:
    """What a call of a layer reads, by own batch; a body may be run several times in one.

    Args:
        walk: stands before the call, or where it can stop before that.
        use: the call.
    """
    at_the_stop = use.owner is walk.model and walk.schedule.position[use.node] == walk.position
    if at_the_stop and walk.schedule.is_value(use.x):
        pairs = zip(walk.values(FLOAT, use.x), walk.values(ROUNDED, use.x), strict=True)
        return [[Sample(use, *pair, batch)] for batch, pair in zip(walk.own(), pairs, strict=True)]
    rows = zip(*(_tapped(walk, use, walk.lanes[name]) for name in (FLOAT, ROUNDED)), strict=True)
    return [
        [replace(sample, batch=batch) for sample in _paired(use, one, other)]
        for batch, (one, other) in zip(walk.own(), rows, strict=True)
    ]


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


def part(calls: Sequence[Sample], walk: Walk) -> Samples:
    """Part calls into those to fit on and those to judge by.

    Args:
        calls: of this process's batches, in their order. Those of a model that is run on a single
            batch are parted along their first dimension.
        walk: whose.
    """
    if walk.count == 1:
        parted = _split(calls)
    else:
        groups: tuple[list[Sample], list[Sample]] = ([], [])
        for sample in calls:
            groups[is_check(sample.batch, walk.count)].append(sample)
        parted = Samples(tuple(groups[0]), tuple(groups[1]))
    said = walk.ranks.gather((bool(parted.fit), bool(parted.check), parted.apart))
    some, judge, apart = zip(*said, strict=True)
    return replace(parted, apart=all(apart), ranks=walk.ranks, enough=any(some) and any(judge))


def _split(calls: Sequence[Sample]) -> Samples:
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
    one, other = sample.floating[start:stop], sample.rounded[start:stop]
    return replace(sample, floating=one, rounded=other)


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
    rows = zip(*uses, strict=True)
    return part([sample for calls in rows for sample in chain.from_iterable(calls)], walk)


def _exact(sample: Sample) -> Sample:
    return replace(sample, rounded=sample.floating)


@torch.no_grad()
def noise(
    samples: Samples, references: Sequence[Tensor], weight: Tensor, bias: Tensor | None
) -> float:
    """The summed squared error of a layer's outputs.

    Args:
        samples: its calls; the quantized inputs of those that judge are used.
        references: what each gives in float.
        weight, bias: what the layer multiplies by and adds.
    """

    def of_one(sample: Sample, place: int) -> float:
        found = sample.use.run(sample.rounded, weight, bias)
        return float((references[place] - found).double().square().sum())

    return samples.judged(of_one)
