"""Measure what each group of tensors and each layer has to do with the output, within a bound.

A row costs two runs of the part of the model behind its first tensor. All rows are measured on as
many batches as half of the bound allows, one at least, and those that come out worst on the rest,
as far as the bound goes: what matters little is not measured to the last decibel.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import Any

from pt2q.algorithms.engine import Lane, Program, Walk
from pt2q.algorithms.engine.walk import FLOAT
from pt2q.algorithms.originals import originals
from pt2q.algorithms.task import Progress
from pt2q.debug.sensitivities.judging import Judge, Metric, MetricJudge, SqnrJudge, Tally, added
from pt2q.debug.sensitivities.measure import Batch, Measurement, Work
from pt2q.debug.sensitivities.result import Sensitivity, SensitivityRow
from pt2q.debug.sensitivities.saved import Saved, fingerprint
from pt2q.debug.sensitivities.several import measure_in
from pt2q.debug.sensitivities.subjects import Subject, groups, layers, rounded_tensors
from pt2q.errors import DataError, NotExportedError
from pt2q.ir.module import QuantGraphModule
from pt2q.ir.record import Stage

_STAGES = (Stage.PREPARED, Stage.PREPARED_QAT)
PASSES = 25.0
"""The default bound."""


def sensitivity(
    prepared: QuantGraphModule,
    batches: Iterable[Any],
    *,
    metric: Metric | None = None,
    by_layer: bool = True,
    by_group: bool = True,
    nodes: Container[str] | None = None,
    passes: float | None = PASSES,
    state: str | Path | None = None,
    seed: int = 0,
    spill: bool | str | Path = False,
    processes: int = 1,
    progress: Progress | None = None,
) -> Sensitivity:
    """Say what each group of tensors, and each layer, has to do with the output.

    Args:
        prepared: what `prepare_pt2e` or `prepare_qat_pt2e` gave, calibrated or trained; it is not
            changed.
        batches: tensors, tuples of arguments or dicts by their names; best not those of
            calibration.
        metric: judges results instead of the signal to noise ratio against float: given the
            model's results, batch by batch, and the positions of these batches, it returns a
            number, larger for better. It is averaged over batches.
        by_layer: also measure layers: an operator with its weight, its inputs and its output.
        by_group: measure groups of tensors that share quantization.
        nodes: measure only what these have a part in, by the names of `SensitivityRow.nodes`.
        passes: how many runs of the float model it may take for each batch. One batch is always
            measured on, whatever it takes. None: no bound.
        state: a file to keep what was measured in; a run that was interrupted goes on from there.
        seed: of operators that draw random numbers.
        spill: keep values in files: True, or the folder in which to make a temporary one.
        processes: how many to share the rows out to; figures are those of one, to the bit.
        progress: is told where the measurement stands.

    Returns:
        The rows, the worst first.

    Raises:
        NotExportedError: the model was not prepared.
        DataError: there is no batch, one is not a call of the model, or the file is of another
            measurement.
        NoDataError: a tensor that is to be rounded was not seen in calibration.
    """
    if not isinstance(prepared, QuantGraphModule) or prepared.record.stage not in _STAGES:
        raise NotExportedError("sensitivity is measured on what prepare_pt2e gave, before convert")
    given = list(batches)
    if not given:
        raise DataError("there is no batch: give at least one to run the model on")
    judge: Judge = (
        SqnrJudge(float_results(prepared, given, seed)) if metric is None else MetricJudge(metric)
    )
    work = Work(Program(prepared))
    work.done += work.whole * len(given) * (metric is None)
    rounded = rounded_tensors(work.program)
    subjects = [*(groups(rounded) if by_group else ()), *(layers(rounded) if by_layer else ())]
    if nodes is not None:
        subjects = [s for s in subjects if any(name in nodes for name in s.nodes)]
    key = fingerprint(prepared, given, judge.name)
    saved = Saved(None if state is None else Path(state), key)
    measurement = Measurement(prepared, judge, work, seed, spill)
    race = _Race(measurement, given, subjects, saved, passes, progress)
    race.processes = processes
    return race.run()


def float_results(model: QuantGraphModule, batches: Sequence[Any], seed: int = 0) -> list[Any]:
    """What the float model gives for each batch, whatever algorithms did to the weights since.

    Args:
        model: prepared.
        batches: calls of it.
        seed: of operators that draw random numbers.
    """
    lane = Lane.floating()
    with Walk(model, batches, [lane], seed=seed) as walk:
        lane.hold(originals(model))
        return walk.finish()[FLOAT]


class _Race:
    """All rows on some batches, the worst of them on all."""

    def __init__(
        self,
        measurement: Measurement,
        batches: Sequence[Any],
        subjects: Sequence[Subject],
        saved: Saved,
        passes: float | None,
        progress: Progress | None,
    ) -> None:
        self.measurement, self.judge = measurement, measurement.judge
        self.work = measurement.work
        self.batches = list(enumerate(batches))
        self.subjects, self.saved, self.progress = subjects, saved, progress
        self.processes = 1
        self.bound = float("inf") if passes is None else passes * self.work.whole * len(batches)

    def run(self) -> Sensitivity:
        """Measure, and order."""
        first = self._first()
        whole = self._measure(self.batches[:first], self.subjects, "first")
        rest = self.batches[first:]
        chosen = self._worst(len(rest)) if rest else []
        if chosen:
            whole = added(whole, self._measure(rest, chosen, "rest"))
        again = {subject.name for subject in chosen}
        rows = [self._row(s, first, len(rest) if s.name in again else 0) for s in self.subjects]
        rows.sort(key=lambda row: (row.alone, row.without))
        count = len(self.batches)
        spent = self.work.done / (self.work.whole * count) if self.work.whole else 0.0
        return Sensitivity(tuple(rows), self.judge.value(whole), self.judge.name, count, spent)

    def _measure(self, batches: Sequence[Batch], subjects: Sequence[Subject], stage: str) -> Tally:
        left = [s for s in subjects if self.saved.get(stage, s.name) is None]
        if self.processes > 1 and len(left) > 1:
            shared = measure_in(self.processes, self.measurement, batches, left, self.progress)
            for name, pair in shared:
                self.saved.put(stage, name, pair)
        return self.measurement.rows(batches, subjects, self.saved, stage, self.progress)

    def _first(self) -> int:
        """On how many batches all rows are measured."""
        each = sum(map(self.work.of, self.subjects)) + 2 * self.work.whole
        left = self.bound - self.work.done
        if each * len(self.batches) <= left:
            return len(self.batches)
        return min(max(int(left / 2 // each), 1), len(self.batches))

    def _worst(self, batches: int) -> list[Subject]:
        """The worst rows that the rest of the bound has room for."""
        left = self.bound - self.work.done - 2 * self.work.whole * batches
        chosen: list[Subject] = []
        for subject in sorted(self.subjects, key=lambda s: self._row(s, 1, 0).alone):
            left -= self.work.of(subject) * batches
            if left < 0:
                break
            chosen.append(subject)
        return chosen

    def _row(self, subject: Subject, first: int, rest: int) -> SensitivityRow:
        alone, without = self._sums(subject, "first")
        if rest:
            more = self._sums(subject, "rest")
            alone, without = added(alone, more[0]), added(without, more[1])
        values = self.judge.value(alone), self.judge.value(without)
        return SensitivityRow(subject.nodes, subject.modules, subject.kind, *values, first + rest)

    def _sums(self, subject: Subject, stage: str) -> tuple[Tally, Tally]:
        found = self.saved.get(stage, subject.name)
        assert found is not None, "it was measured"
        return found
