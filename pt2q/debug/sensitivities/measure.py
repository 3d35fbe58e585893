"""Measure rows along one walk: each from where it first differs, from values that are there.

The walk goes through the graph once, in float and rounded. Where the first tensor of a row is
rounded, the rest of the model is run twice from the values at hand: from the float ones with the
row alone rounding, and from the rounded ones with all but the row. Nothing before is computed
again. Weights are rounded once for all runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from pt2q.algorithms.engine import Lane, Program, Walk
from pt2q.algorithms.engine.lane import Place
from pt2q.algorithms.engine.rounding import is_static, rounding_of
from pt2q.algorithms.engine.walk import FLOAT, ROUNDED
from pt2q.algorithms.originals import originals
from pt2q.algorithms.task import Progress
from pt2q.debug.sensitivities.judging import Judge, Tally
from pt2q.debug.sensitivities.saved import Saved
from pt2q.debug.sensitivities.subjects import Subject, rounded_tensors, weights_alone
from pt2q.ir.graph import value_of
from pt2q.ir.module import QuantGraphModule
from pt2q.observers.protocol import has_data


def operators(nodes: Iterable[Node]) -> int:
    """How many operators some nodes are: what a run of them costs."""
    return sum(node.op == "call_function" for node in nodes)


Batch = tuple[int, Any]
"""One batch, behind its position among all."""


class Work:
    """What measuring costs, in operators run on one batch.

    Args:
        program: the model.
    """

    def __init__(self, program: Program) -> None:
        schedule = program.schedule
        run = [schedule.is_value(node) for node in schedule.nodes]
        self.program = program
        self.whole = operators(n for n, kept in zip(schedule.nodes, run, strict=True) if kept)
        self.done = 0

    def of(self, subject: Subject) -> int:
        """Of the two runs of a row."""
        schedule = self.program.schedule
        start = schedule.cut_before(subject.position)
        needed = schedule.needed([schedule.nodes[-1]], start)
        return 2 * operators(filter(schedule.is_value, needed))

    def add(self, subjects: Iterable[Subject], batches: int) -> None:
        """Count a walk in two lanes with the runs of some rows."""
        self.done += (2 * self.whole + sum(map(self.of, subjects))) * batches


class Measurement:
    """Runs a prepared model on some batches.

    Args:
        model: prepared and calibrated; not changed.
        judge: says how good results are.
        work: counts.
        seed: of operators that draw random numbers.
        spill: as for `Walk`.
    """

    def __init__(
        self, model: QuantGraphModule, judge: Judge, work: Work, seed: int, spill: Any
    ) -> None:
        self.model, self.judge, self.work = model, judge, work
        self.seed, self.spill = seed, spill

    @torch.no_grad()
    def rows(
        self,
        batches: Sequence[Batch],
        subjects: Sequence[Subject],
        saved: Saved,
        stage: str,
        progress: Progress | None,
    ) -> Tally:
        """Measure rows, into what is saved.

        Args:
            batches: each with its position among all.
            subjects: the rows.
            saved: gets the sums; rows that it has are not measured again.
            stage: names these batches there.
            progress: is told where it stands.

        Returns:
            The sums of everything quantized.
        """
        left = [s for s in subjects if saved.get(stage, s.name) is None]
        self.work.add(subjects, len(batches))
        known = saved.get(stage, "")
        if known is not None and not left:
            return known[0]
        numbers = [number for number, _ in batches]
        lanes = [Lane.floating(), Lane.rounding()]
        given = [batch for _, batch in batches]
        with Walk(self.model, given, lanes, seed=self.seed, spill=self.spill) as walk:
            weights = _rounded_weights(walk)
            weights.round_in(lanes[1])
            lanes[0].hold(originals(self.model))
            _settle(walk)
            for done, subject in enumerate(sorted(left, key=lambda s: s.position)):
                if progress is not None:
                    progress(len(subjects) - len(left) + done, len(subjects), subject.name)
                walk.advance(walk.schedule.nodes[subject.position])
                saved.put(stage, subject.name, self._pair(walk, weights, subject, numbers))
            whole = self.judge.tally(walk.finish()[ROUNDED], numbers)
        saved.put(stage, "", (whole, ()))
        return whole

    def _pair(
        self, walk: Walk, weights: _Weights, subject: Subject, numbers: Sequence[int]
    ) -> tuple[Tally, Tally]:
        chosen = subject.observers
        alone, without = walk.lanes[FLOAT].fork(), walk.lanes[ROUNDED].fork()
        alone.rounds = lambda observer: id(observer) in chosen
        without.rounds = lambda observer: id(observer) not in chosen
        alone.hold(weights.floating(chosen))  # those that an algorithm has left
        without.hold(weights.floating(chosen))
        return (
            self.judge.tally(_results(walk, alone, FLOAT), numbers),
            self.judge.tally(_results(walk, without, ROUNDED), numbers),
        )


def _results(walk: Walk, lane: Lane, of: str) -> list[Any]:
    """What the model gives in a lane, from where the walk stands."""
    end = walk.schedule.nodes[-1]
    found = walk.replay([end], lane, of=of)
    return [walk.model.graph.process_outputs(values[end]) for values in found]


class _Weights:
    """Weights as they are and rounded, by where they are.

    Args:
        found: the float and the rounded tensor, and the observer.
    """

    def __init__(self, found: dict[Place, tuple[Tensor, Tensor, Any]]) -> None:
        self.found = found

    def round_in(self, lane: Lane) -> None:
        """Let a lane read the rounded ones, whose observers have nothing left to do."""
        lane.hold({place: rounded for place, (_, rounded, _) in self.found.items()})
        for _, _, observer in self.found.values():
            lane.round_by(observer, lambda x: x)

    def floating(self, observers: frozenset[int]) -> dict[Place, Tensor]:
        """The float ones of some observers."""
        return {
            place: exact
            for place, (exact, _, observer) in self.found.items()
            if id(observer) in observers
        }


def _settle(walk: Walk) -> None:
    """Ask each observer of activations for its parameters once: histograms take their time."""
    for item in rounded_tensors(walk.program):
        if item.is_weight or not is_static(item.observer) or not has_data(item.observer):
            continue
        value = value_of(item.source)
        rank = value.dim() if isinstance(value, Tensor) else 0
        rounding = rounding_of(item.observer, rank)
        for lane in walk.lanes.values():
            lane.round_by(item.observer, rounding)


def _rounded_weights(walk: Walk) -> _Weights:
    found: dict[Place, tuple[Tensor, Tensor, Any]] = {}
    lane = walk.lanes[ROUNDED].fork()
    for place, item in weights_alone(rounded_tensors(walk.program), walk.program).items():
        exact = lane.tensor(item.owner, place[1])
        found[place] = exact, lane.observed(item.observer, exact, constant=True), item.observer
    return _Weights(found)
