"""What every algorithm is called with, and what it is as an object."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import torch.distributed as dist

from pt2q.algorithms.batches import Batches
from pt2q.algorithms.engine import Lane, Walk
from pt2q.algorithms.kept import NOTHING, Kept
from pt2q.algorithms.report import Report
from pt2q.distributed import ALONE, Ranks
from pt2q.ir.module import QuantGraphModule

Progress = Callable[[int, int, str], None]
"""Is told how many steps are done, of how many, and which is next."""


@dataclass(frozen=True)
class Task:
    """A call of an algorithm; see `GraphAlgorithm` for the fields."""

    model: QuantGraphModule
    batches: Iterable[Any]
    seed: int = 0
    spill: bool | str | Path = False
    progress: Progress | None = None
    ranks: Ranks = ALONE
    kept: Kept = NOTHING

    def walk(self, lanes: Sequence[Lane] | None = None) -> Walk:
        """A run of the model from its beginning.

        Args:
            lanes: what runs; the floating and the rounding one if not given.
        """
        return Walk(
            self.model, self.batches, lanes, spill=self.spill, seed=self.seed, ranks=self.ranks
        )


class GraphAlgorithm(ABC):
    """An algorithm that improves a prepared and calibrated model."""

    name: ClassVar[str]

    def __call__(
        self,
        model: QuantGraphModule,
        batches: Iterable[Any],
        *,
        seed: int = 0,
        spill: bool | str | Path = False,
        progress: Progress | None = None,
        group: dist.ProcessGroup | None = None,
        resume: str | PathLike[str] | None = None,
    ) -> Report:
        """Improve a prepared and calibrated model.

        Args:
            model: what `pt2q.prepare_pt2e` gave, calibrated; changed in place.
            batches: each a tensor, a tuple of arguments or a dict by their names; what can be gone
                through only once is kept in memory.
            seed: of random choices.
            spill: keep the values of the run in files: True, or the folder for them.
            progress: is told where the run stands.
            group: the processes that do it together, as in `pt2q.distributed.calibrate`; None for
                all, or for this one where ``torch.distributed`` is not initialised.
            resume: a folder that keeps what was found, layer by layer; a run that was stopped goes
                on from there and ends with the same model.

        Returns:
            What was done, layer by layer.

        Raises:
            DataError: there is no batch, or one is not a call of the model.
            DistributedError: another process failed, or ``resume`` is of another run.
        """
        ranks = Ranks.of(group)
        kept = Kept.of(resume, ranks, model, f"{self} seed={seed}")
        data = Batches(batches, seed)
        return self.improve(Task(model, data, seed, spill, progress, ranks, kept))

    @abstractmethod
    def improve(self, task: Task) -> Report:
        """Do what `__call__` was asked for.

        Args:
            task: its arguments.
        """
