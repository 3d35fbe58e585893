"""Two settings of an algorithm over a whole model, and the one that the outputs say is better."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from pt2q.algorithms.kept import Kept, Plain
from pt2q.algorithms.model_error import ModelError, is_less
from pt2q.algorithms.originals import fork
from pt2q.algorithms.report import Report
from pt2q.algorithms.task import GraphAlgorithm, Progress, Task


@dataclass(frozen=True)
class _Remembered(Kept):
    """What a run finds is also kept in memory."""

    steps: dict[int, Plain] = field(default_factory=dict)

    def recall(self, step: int, work: Callable[[], Plain]) -> Plain:
        """See `Kept.recall`."""
        if step not in self.steps:
            self.steps[step] = super().recall(step, work)
        return self.steps[step]


def the_better(task: Task, first: GraphAlgorithm, second: GraphAlgorithm) -> Report:
    """Improve a model by the one of two algorithms that leaves less error in its outputs.

    Args:
        task: what was asked for; its model is changed as the better one alone would change it.
        first: stays unless the second gains beyond chance on the batches to judge by.
        second: the other.
    """
    judge = ModelError(task.model, task.batches, task.ranks)
    kept, errors = [], []
    for place, algorithm in enumerate((first, second)):
        tried = fork(task.model)
        kept.append(_of(task.kept, place))
        told = _as_one(task, place)
        algorithm.improve(replace(task, model=tried, kept=kept[-1], progress=told))
        errors.append(judge.of(tried))
    best = int(is_less(*errors))
    return (first, second)[best].improve(replace(task, kept=kept[best], progress=None))


def _as_one(task: Task, place: int) -> Progress | None:
    """What tells the progress of one of the two as a half of the whole."""
    tell = task.progress
    if tell is None:
        return None
    return lambda done, total, words: tell(place * total + done, 2 * total, words)


def _of(kept: Kept, place: int) -> _Remembered:
    """What one of the two keeps: in a folder of its own, if any."""
    folder = None if kept.folder is None else kept.folder / str(place)
    return _Remembered(folder, kept.ranks, f"{kept.run} {place}")
