"""Ranges of activations by what they do to what is computed from them.

Calibration chooses a range by the values alone. What matters is the error of what reads them:
channels that meet large weights, the side of a value that an activation cuts off. Every operator
that reads a value counts by its relative error:

    sum over readers of |f - f'|^2 / |f|^2

with ``f`` what the reader gives in float and ``f'`` what it gives when the value, its weight and
its other operands are rounded (searching clipping by the error of the outputs is done in Wu et al.
2020, "EasyQuant: Post-training Quantization via Scale Optimization", section 3; ranges are factors
of the calibrated one). The value itself comes from the float model: behind layers that are wrong
already, every smaller range would look better, for it damps what is noise there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pt2q.algorithms.engine import Walk
from pt2q.algorithms.engine.rounding import Grid, grid_of
from pt2q.algorithms.engine.walk import FLOAT, ROUNDED
from pt2q.algorithms.kept import Plain
from pt2q.algorithms.layers import Passed
from pt2q.algorithms.model_error import is_less
from pt2q.algorithms.parting import Parting
from pt2q.algorithms.pinned import pinned, replace_observer
from pt2q.algorithms.ranges import ValueRange, find_ranges
from pt2q.algorithms.report import Report, Row, decibels
from pt2q.algorithms.task import Task
from pt2q.algorithms.trial import energy
from pt2q.distributed import together
from pt2q.ir.dtypes import is_symmetric
from pt2q.ir.graph import module_path
from pt2q.ir.module import QuantGraphModule
from pt2q.numerics.qparams import choose_qparams

FACTORS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.1, 1.25, 1.5)
"""Of both sides of a range."""
SIDES = (0.7, 0.85, 1.2)
"""Of one side, after that."""
SEARCHED = 12
"""So many batches are enough to find a range on."""

GAINED = 0.5
"""A change leaves at most this share of the error: less is lost on values that few batches lack."""

Outputs = list[list[Tensor]]
"""By target, what it gives for each batch."""


@dataclass(frozen=True)
class Candidate:
    """A range ``[low, high]`` that a value might get."""

    low: float
    high: float

    def grid(self, like: Grid, observer: Any) -> Grid:
        """The scale and zero point for it, in the scheme of an observer."""
        scale, zero_point = choose_qparams(
            torch.tensor(self.low),
            torch.tensor(self.high),
            quant_min=like.quant_min,
            quant_max=like.quant_max,
            dtype=like.dtype,
            qscheme=observer.qscheme,
            eps=max(like.floor, torch.finfo(torch.float32).tiny),
        )
        return like.with_scale(scale.reshape(1), zero_point.reshape(1).to(like.zero_point.dtype))

    def scaled(self, low: float, high: float) -> Candidate:
        """With each side multiplied."""
        return Candidate(self.low * low, self.high * high)


class RangeRun:
    """A run over all ranges of a model.

    Args:
        name: the algorithm's.
        walk: has a floating lane and a rounding one; stands at the beginning.
        task: what was asked for.
    """

    def __init__(self, name: str, walk: Walk, task: Task) -> None:
        self.name = name
        self.walk = walk
        self.task = task
        self.parting = Parting.of(walk)

    @torch.no_grad()
    def report(self, first: int) -> Report:
        """Change the model, range after range.

        Args:
            first: the number of the first step in what is kept.
        """
        found, passed = find_ranges(self.walk.program)
        rows: list[Row] = []
        for done, one in enumerate(found):
            if self.task.progress is not None:
                self.task.progress(done, len(found), f"{self.name}: range of {one.name}")
            self.walk.advance(one.nodes[0])
            result = self.task.kept.recall(first + done, partial(self._solved, one))
            if "row" not in result:
                passed.append(Passed(one.name, result["passed"]))
                continue
            row = Row(**result["row"])
            if row.kept:
                self._apply(one, Grid(**result["grid"]))
            rows.append(row)
        return Report(tuple(rows), tuple((self.name, item) for item in passed))

    def _solved(self, one: ValueRange) -> Plain:
        """A row of the report with the new grid, or why a range is passed over."""
        start = time.perf_counter()
        if self.walk.schedule.writes(self.walk.position, self._last(one)):
            return {"passed": "a tensor is written between it and what reads it"}
        fit, check = (_Judge.of(self, one, fit) for fit in (True, False))
        grid = grid_of(one.observer, one.nodes[0].all_input_nodes[0].meta["val"].dim())
        best = search(grid, one.observer, fit.error)
        before, after = check.errors(grid), check.errors(best)
        kept = is_less(before, after) and math.fsum(after) < GAINED * math.fsum(before)
        where = "held-out batches" if self.parting.apart else "the only batch"
        row = Row(
            self.name,
            one.name,
            module_path(one.nodes[0]),
            decibels(1.0, math.fsum(before)),
            decibels(1.0, math.fsum(after)),
            kept,
            f"range times {_words(grid, best)}: {'less' if kept else 'no less'} error on {where}",
            time.perf_counter() - start,
        )
        return {"row": vars(row), "grid": vars(best)}

    def _last(self, one: ValueRange) -> int:
        return max(self.walk.schedule.position[node] for node in one.targets)

    def _apply(self, one: ValueRange, grid: Grid) -> None:
        model = self.walk.model
        assert isinstance(model, QuantGraphModule)
        replace_observer(model, one.observer, pinned(one.observer, grid))
        self.walk.lanes[ROUNDED].forget_all()


@dataclass(frozen=True)
class _Judge:
    """What reads a value, in float, on some batches."""

    run: RangeRun
    one: ValueRange
    batches: tuple[int, ...]
    cut: Callable[[Tensor], Tensor]
    exact: Outputs
    energies: tuple[float, ...]

    @classmethod
    def of(cls, run: RangeRun, one: ValueRange, fit: bool) -> _Judge:
        parting = run.parting
        batches = parting.fit[:SEARCHED] if fit else parting.check
        cut = parting.to_fit if fit else parting.to_check
        made = cls(run, one, batches, cut, [], ())
        exact = made.outputs(None)
        energies = tuple(max(energy(run.walk.ranks, of_one), 1e-30) for of_one in exact)
        return cls(run, one, batches, cut, exact, energies)

    def outputs(self, grid: Grid | None) -> Outputs:
        """What the readers give, by this process's batches.

        Args:
            grid: of the value; None runs the float model.
        """
        walk = self.run.walk
        lane = walk.lanes[FLOAT if grid is None else ROUNDED].fork()
        if grid is not None:
            lane.round_by(self.one.observer, grid.round)

        def run() -> Outputs:
            rows = list(walk.replay(self.one.targets, lane, of=FLOAT, batches=self.batches))
            return [[self.cut(row[node]) for row in rows] for node in self.one.targets]

        return together(walk.ranks, run)

    def errors(self, grid: Grid) -> tuple[float, ...]:
        """For each batch, the error of all readers over their energy in all of them."""
        triples = zip(self.exact, self.outputs(grid), self.energies, strict=True)
        shares = [
            [float((a - b).double().square().sum()) / of_all for a, b in zip(x, y, strict=True)]
            for x, y, of_all in triples
        ]
        return tuple(self.run.walk.shared(map(math.fsum, zip(*shares, strict=True)), self.batches))

    def error(self, grid: Grid) -> float:
        """The relative error of all readers together."""
        return math.fsum(self.errors(grid))


def search(grid: Grid, observer: Any, error: Callable[[Grid], float]) -> Grid:
    """The grid with the least error among those of ranges near that of one.

    Args:
        grid: as calibrated.
        observer: says which scheme.
        error: of a grid.
    """
    best, least = grid, error(grid)
    stages = [_both_sides] if is_symmetric(observer.qscheme) else [_both_sides, _one_side]
    for stage in stages:
        for tried in stage(range_of(best)):
            candidate = tried.grid(grid, observer)
            found = error(candidate)
            if found < least:
                best, least = candidate, found
    return best


def range_of(grid: Grid) -> Candidate:
    """The smallest and the largest number of a grid with one scale."""
    scale, zero_point = float(grid.scale), float(grid.zero_point)
    return Candidate((grid.quant_min - zero_point) * scale, (grid.quant_max - zero_point) * scale)


def _both_sides(span: Candidate) -> Iterator[Candidate]:
    return (span.scaled(factor, factor) for factor in FACTORS)


def _one_side(span: Candidate) -> Iterator[Candidate]:
    yield from (span.scaled(1.0, factor) for factor in SIDES)
    yield from (span.scaled(factor, 1.0) for factor in SIDES)


def _words(before: Grid, after: Grid) -> str:
    ratio = float(after.scale) / float(before.scale)
    return f"{ratio:.3g}"
