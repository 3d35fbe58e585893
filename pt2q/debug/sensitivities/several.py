"""Rows of a measurement in several processes, with the figures of one to the bit.

What a row comes to does not depend on the rows that are measured beside it, so they are dealt out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from pt2q.algorithms.engine import Program
from pt2q.algorithms.task import Progress
from pt2q.debug.sensitivities.judging import Judge
from pt2q.debug.sensitivities.measure import Batch, Measurement, Work
from pt2q.debug.sensitivities.saved import Pair, Saved
from pt2q.debug.sensitivities.subjects import Subject, groups, layers, rounded_tensors
from pt2q.ir.module import QuantGraphModule
from pt2q.optional import optional_modules

STAGE = "here"


def measure_in(
    processes: int,
    measurement: Measurement,
    batches: Sequence[Batch],
    subjects: Sequence[Subject],
    progress: Progress | None,
) -> Iterator[tuple[str, Pair]]:
    """Measure rows by the workers of joblib, or of what ``joblib.parallel_config`` names.

    Workers use as many threads as this process, for the same figures.

    Args:
        processes: how many.
        measurement: what each of them does.
        batches: each with its position among all.
        subjects: the rows.
        progress: is told where it stands.

    Yields:
        The name of each row with its sums, and that of the whole, "".
    """
    (joblib,) = optional_modules("joblib", extra="search")
    shares = dealt(subjects, measurement.work, processes)
    m, threads = measurement, torch.get_num_threads()
    calls = (
        joblib.delayed(_share)(m.model, m.judge, m.seed, m.spill, batches, names, threads)
        for names in shares
    )
    done = 0
    for names, found in zip(
        shares, joblib.Parallel(n_jobs=processes, return_as="generator")(calls), strict=True
    ):
        done += len(names)
        if progress is not None:
            progress(done, len(subjects), names[-1])
        yield from found.items()


def dealt(subjects: Sequence[Subject], work: Work, shares: int) -> list[list[str]]:
    """The names of rows in shares of about equal work, the first of the graph first.

    Args:
        subjects: the rows.
        work: says what each costs.
        shares: how many at most; none is empty.
    """
    ordered = sorted(subjects, key=lambda s: s.position)
    total, spent = sum(map(work.of, ordered)) or 1, 0
    found: list[list[str]] = [[] for _ in range(shares)]
    for subject in ordered:
        found[min(spent * shares // total, shares - 1)].append(subject.name)
        spent += work.of(subject)
    return [names for names in found if names]


def _share(
    model: QuantGraphModule,
    judge: Judge,
    seed: int,
    spill: Any,
    batches: Sequence[Batch],
    names: Sequence[str],
    threads: int,
) -> dict[str, Pair]:
    """What one process does; rows go by their names, as observers have another identity here."""
    torch.set_num_threads(threads)
    work = Work(Program(model))
    rounded = rounded_tensors(work.program)
    known = {subject.name: subject for subject in (*groups(rounded), *layers(rounded))}
    saved = Saved(None, "")
    measurement = Measurement(model, judge, work, seed, spill)
    measurement.rows(batches, [known[name] for name in names], saved, STAGE, None)
    found = {name: saved.get(STAGE, name) for name in (*names, "")}
    return {name: pair for name, pair in found.items() if pair is not None}
