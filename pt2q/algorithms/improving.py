"""Win accuracy back in a prepared and calibrated model, as far as the whole of it gets better."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import torch.distributed as dist

from pt2q.algorithms.applied import Applied
from pt2q.algorithms.batches import Batches
from pt2q.algorithms.effort import algorithms_for
from pt2q.algorithms.model_error import ModelError, is_less
from pt2q.algorithms.originals import fork
from pt2q.algorithms.report import Report, decibels
from pt2q.algorithms.task import GraphAlgorithm, Progress
from pt2q.distributed import Ranks
from pt2q.errors import SpecError
from pt2q.flow import convert_pt2e
from pt2q.ir.module import QuantGraphModule
from pt2q.offers import EFFORTS


class Algorithm(Protocol):
    """What wins accuracy back in a prepared and calibrated model."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    def __call__(
        self,
        model: QuantGraphModule,
        batches: Iterable[Any],
        *,
        seed: int = 0,
        spill: bool | str | Path = False,
        progress: Progress | None = None,
    ) -> Report:
        """Change the model in place and say what was done."""
        ...


@dataclass(frozen=True)
class Improvement:
    """How accuracy is won back; see `quantize_pt2e`."""

    algorithms: tuple[Algorithm, ...] = ()
    effort: str | None = None
    seed: int = 0
    spill: bool | str | Path = False
    progress: Progress | None = None
    group: dist.ProcessGroup | None = None
    resume: str | PathLike[str] | None = None


def improve_and_convert(
    prepared: QuantGraphModule,
    batches: Iterable[Any],
    improvement: Improvement,
    **options: Any,
) -> QuantGraphModule:
    """Improve a prepared and calibrated model, and convert it.

    Args:
        prepared: it is not changed.
        batches: see `quantize_pt2e`.
        improvement: how.
        **options: for `convert_pt2e`.

    Raises:
        SpecError, NoDataError: as `quantize_pt2e`.
    """
    improved, applied = apply_improvement(prepared, batches, improvement)
    converted = convert_pt2e(improved, **options)
    if applied is not None:
        converted.record.put(applied)
    return converted


def apply_improvement(
    prepared: QuantGraphModule, batches: Iterable[Any], improvement: Improvement
) -> tuple[QuantGraphModule, Applied | None]:
    """Improve a prepared and calibrated model.

    Args:
        prepared: it is not changed.
        batches: see `quantize_pt2e`.
        improvement: how.

    Returns:
        The improved model, and what was done to it if anything was asked for.

    Raises:
        SpecError, NoDataError: as `quantize_pt2e`.
    """
    effort, seed = improvement.effort, improvement.seed
    check_choice(improvement.algorithms, effort)
    chosen = improvement.algorithms if effort is None else algorithms_for(prepared, effort)
    improved, report = improve(
        prepared,
        batches,
        chosen,
        group=improvement.group,
        resume=improvement.resume,
        seed=seed,
        spill=improvement.spill,
        progress=improvement.progress,
    )
    return improved, Applied.of(chosen, report, seed) if chosen else None


def check_choice(algorithms: Sequence[Algorithm], effort: str | None) -> None:
    """Check what is asked for before any work.

    Raises:
        SpecError: there is no such effort, or algorithms are given as well.
    """
    if effort is None:
        return
    if effort not in EFFORTS:
        raise SpecError(f"effort: expected one of {', '.join(EFFORTS)}, found {effort!r}")
    if algorithms:
        names = ", ".join(algorithm.name for algorithm in algorithms)
        raise SpecError(f"effort={effort!r} chooses the algorithms: give it, or {names}, not both")


def improve(
    model: QuantGraphModule,
    batches: Iterable[Any],
    algorithms: Sequence[Algorithm],
    *,
    group: dist.ProcessGroup | None = None,
    resume: str | PathLike[str] | None = None,
    **options: Any,
) -> tuple[QuantGraphModule, Report]:
    """Apply algorithms one after the other, as far as the whole model gets better.

    Each begins with what the one before it left. Of the states on the way, the one whose outputs
    are nearest to float on the batches to judge by, beyond chance, is given back.

    Args:
        model: prepared and calibrated; it is not changed.
        batches: see `quantize_pt2e`.
        algorithms: in order.
        group: the processes that do it together, see `quantize_pt2e`.
        resume: a folder that keeps what was found, a folder in it for each algorithm.
        **options: for each of them.

    Returns:
        The improved model, and what was done.
    """
    if not algorithms:
        return model, Report()
    batches = Batches(batches, options.get("seed", 0))
    judge = ModelError(model, batches, Ranks.of(group))
    states, errors, reports = [model], [judge.of(model)], []
    for place, algorithm in enumerate(algorithms):
        tried = fork(states[-1])
        more: dict[str, Any] = {}
        if isinstance(algorithm, GraphAlgorithm):  # a user's need not take these
            folder = None if resume is None else Path(resume) / f"{place}-{algorithm.name}"
            more = {"group": group, "resume": folder}
        found = algorithm(tried, batches, **options, **more)
        states.append(tried)
        errors.append(judge.of(tried) if any(row.kept for row in found.rows) else errors[-1])
        reports.append(found)
    best = 0
    for state in range(1, len(states)):
        if is_less(errors[best], errors[state]):
            best = state
    kept = reports[:best]
    for report, before, after in list(zip(reports, errors, errors[1:], strict=False))[best:]:
        kept.append(_taken_back(report, judge.where, math.fsum(before), math.fsum(after)))
    return states[best], sum(kept, Report())


def _taken_back(report: Report, where: str, before: float, after: float) -> Report:
    words = (
        f"taken back: the model's outputs on {where} went from "
        f"{decibels(1.0, before):.2f} to {decibels(1.0, after):.2f} dB, no gain beyond chance"
    )
    rows = tuple(replace(row, kept=False, reason=words) if row.kept else row for row in report.rows)
    return replace(report, rows=rows)
