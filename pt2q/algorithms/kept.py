"""What algorithms have found, in a folder, so that a run that was stopped goes on from there.

A run that goes on does what the first one did, in the same order; what takes long is read from the
folder where it is there. Random numbers go on as they did then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from pt2q.distributed import ALONE, Ranks, together
from pt2q.distributed.model_digest import digest_of
from pt2q.errors import DistributedError
from pt2q.files import replacing
from pt2q.ir.module import QuantGraphModule

Plain = dict[str, Any]
"""Tensors, numbers, texts and types, in dicts, lists and tuples."""


@dataclass(frozen=True)
class Kept:
    """What one run of an algorithm has found.

    Args:
        folder: made when missing; None keeps nothing.
        ranks: the processes; the first of them reads and writes.
        run: tells the run apart from those of other models and settings.
    """

    folder: Path | None = None
    ranks: Ranks = ALONE
    run: str = ""

    @classmethod
    def of(
        cls,
        folder: str | PathLike[str] | None,
        ranks: Ranks,
        model: QuantGraphModule,
        settings: str,
    ) -> Kept:
        """What a run on a model keeps.

        Args:
            folder: where; None for nowhere.
            ranks: the processes.
            model: as the run begins.
            settings: of the run.
        """
        if folder is None:
            return cls(None, ranks)
        return cls(Path(folder), ranks, f"{settings} {digest_of(model) if ranks.rank == 0 else ''}")

    def recall(self, step: int, work: Callable[[], Plain]) -> Plain:
        """What a step has found before, or what it finds now, which is kept.

        Args:
            step: its number in the run.
            work: does it.

        Raises:
            DistributedError: the folder is of another run.
            SaveError: it cannot be written.
        """
        if self.folder is None:
            return work()
        path = self.folder / f"{step:05}.pt"
        found = self.ranks.share(partial(self._read, path))[0]
        if found is None:
            value = work()
            together(self.ranks, partial(self._write, path, value))
            return value
        torch.default_generator.set_state(found["random"])
        return dict(found["value"])

    def _read(self, path: Path) -> Plain | None:
        if self.ranks.rank > 0 or not path.exists():
            return None
        found: Plain = torch.load(path, weights_only=True)
        if found["run"] != self.run:
            raise DistributedError(
                f"resume {path}: it is of another model, other data or other settings; start as "
                "then, or remove the folder"
            )
        return found

    def _write(self, path: Path, value: Plain) -> None:
        if self.ranks.rank > 0:
            return
        random = torch.default_generator.get_state()
        with replacing(path) as draft:
            torch.save({"run": self.run, "random": random, "value": value}, draft)


NOTHING = Kept()
"""Nothing is kept."""
