"""A model quantized again and again, with changes, within a bound."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

from pt2q.algorithms.engine import Lane, Program, Walk
from pt2q.algorithms.engine.walk import ROUNDED
from pt2q.algorithms.task import Progress
from pt2q.debug.diagnosis.changes import FORM, Change, Setup
from pt2q.debug.sensitivities.judging import Judge
from pt2q.debug.sensitivities.subjects import rounded_tensors
from pt2q.errors import AnnotationError, Pt2qWarning
from pt2q.ir.module import QuantGraphModule

MOST = 150.0
"""More decibels than this are as good as none lost."""
NOTHING = -math.inf, 0
"""Of what was not tried, or is not run by the backend."""


class Trials:
    """What changes come to, each measured once.

    Args:
        setup: quantizes the model, which takes its calibration each time.
        batches: to measure on.
        judge: says how good results are.
        most: how many changes are tried.
        progress: is told which is next, and how many there may be.
    """

    def __init__(
        self,
        setup: Setup,
        batches: Sequence[Any],
        judge: Judge,
        most: int,
        progress: Progress | None,
    ) -> None:
        self.setup, self.batches, self.judge = setup, batches, judge
        self.most, self.progress = most, progress
        self.found: dict[tuple[Change, ...], tuple[float, int]] = {}
        self.refused: set[str] = set()
        self.made = 0

    @property
    def before(self) -> float:
        """The figure without a change."""
        return self.found[()][0]

    def start(self, model: QuantGraphModule) -> int:
        """Measure the model as it is.

        Args:
            model: prepared and calibrated.

        Returns:
            How many roundings there are.
        """
        self.found[()] = self._measured(model)
        return self.found[()][1]

    def of(self, *changes: Change) -> tuple[float, int]:
        """The figure with changes, and how many roundings are left; `NOTHING` beyond the bound.

        Args:
            changes: the later over the earlier.
        """
        if changes in self.found:
            return self.found[changes]
        forms = {change.value for change in changes if change.kind == FORM}
        if self.made >= self.most or forms & self.refused:
            return NOTHING
        if self.progress is not None:
            self.progress(self.made, self.most, str(changes[-1]))
        self.made += 1
        try:
            with warnings.catch_warnings():  # what a trial warns of is no news
                warnings.simplefilter("ignore", Pt2qWarning)
                model, _ = self.setup.prepared(changes)
        except AnnotationError:
            if not forms:
                raise
            self.refused |= forms
            self.found[changes] = NOTHING
            return NOTHING
        self.found[changes] = self._measured(model)
        return self.found[changes]

    def gain(self, change: Change) -> float:
        """What a change alone wins, in dB.

        Args:
            change: tried if it was not yet.
        """
        return min(self.of(change)[0], MOST) - min(self.before, MOST)

    def _measured(self, model: QuantGraphModule) -> tuple[float, int]:
        with Walk(model, self.batches, [Lane.rounding()]) as walk:
            results = walk.finish()[ROUNDED]
        value = self.judge.value(self.judge.tally(results, range(len(results))))
        return value, len(rounded_tensors(Program(model)))
