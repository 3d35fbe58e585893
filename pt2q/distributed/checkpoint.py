"""How far a calibration came, in a folder, one file for each process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from pt2q.distributed.ranks import Ranks
from pt2q.errors import DistributedError
from pt2q.files import replacing
from pt2q.observers.base.observer_base import ObserverBase
from pt2q.observers.fake_quantizers.fake_quantizer import FakeQuantize
from pt2q.observers.protocol import rounds


def can_tell(observer: Any) -> bool:
    """Whether an observer says what it has seen, and takes what others have.

    Args:
        observer: of ours, of another library or a user's; a fake quantizer only as long as it lets
            pass what comes.
    """
    if isinstance(observer, FakeQuantize):
        return not rounds(observer)
    return isinstance(observer, ObserverBase)


@dataclass(frozen=True)
class Past:
    """What a stopped run had done.

    Args:
        batches: how many of its own this process had run, as if all turns were full.
        data: their digest.
        read: how many there were.
    """

    batches: int = 0
    data: str = ""
    read: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """Where a process keeps what its observers have seen.

    Args:
        folder: made when missing.
        ranks: the processes; a run goes on with as many as it began with.
        model: its digest, before it has seen anything.
    """

    folder: str | PathLike[str]
    ranks: Ranks
    model: str

    @property
    def path(self) -> Path:
        """The file of this process."""
        return Path(self.folder) / f"calibration-{self.ranks.rank}-of-{self.ranks.size}.pt"

    def save(self, observers: Mapping[str, Any], past: Past) -> None:
        """Keep what was seen.

        Args:
            observers: by name.
            past: what this process has run.
        """
        content = {"model": self.model, **vars(past), "statistics": statistics_of(observers)}
        with replacing(self.path) as draft:
            torch.save(content, draft)

    def restore(self, observers: Mapping[str, Any]) -> Past:
        """Give observers what was kept, and return what was run.

        Args:
            observers: by name.

        Raises:
            DistributedError: what was kept is of another model or number of processes.
        """
        check_processes(self.folder, "calibration-*", self.ranks)
        content = torch.load(self.path, weights_only=True) if self.path.exists() else None
        if content is None:
            return Past()
        if content.get("model") != self.model:
            raise DistributedError(
                f"resume {self.folder}: {self.path.name} is of another model, or of one with other "
                "weights or settings. Give each run a folder of its own, or remove this one"
            )
        for name, statistics in content["statistics"].items():
            observers[name].restore(statistics)
        return Past(**{name: content[name] for name in vars(Past())})

    def go_on(self, observers: Mapping[str, Any], past: Past, now: Past) -> None:
        """Keep what was seen, once a stopped run is caught up with.

        Args:
            observers: by name.
            past: what the stopped run had done.
            now: what this one has, what it read again included.

        Raises:
            DistributedError: what was read again is other data than then.
        """
        if now.batches > past.batches:
            self.save(observers, now)
        elif now.batches == past.batches and now.data != past.data:
            raise self._other_data()

    def check(self, past: Past, batches: int) -> None:
        """Refuse a run that ended before it caught up with a stopped one.

        Args:
            past: what the stopped run had done.
            batches: how many this one had.

        Raises:
            DistributedError: it had fewer.
        """
        if batches < past.read:
            raise self._other_data()

    def _other_data(self) -> DistributedError:
        return DistributedError(
            f"resume {self.folder}: {self.path.name} is of a run that had other data. "
            "Give each run a folder of its own, or remove this one"
        )


def statistics_of(observers: Mapping[str, Any]) -> dict[str, Any]:
    """What observers have seen, of those that say so.

    Args:
        observers: by name.
    """
    return {name: o.statistics() for name, o in observers.items() if can_tell(o)}


def check_processes(folder: str | PathLike[str], kept: str, ranks: Ranks) -> None:
    """Refuse a folder that another number of processes left.

    Args:
        folder: of a run that was stopped, or a new one.
        kept: a pattern of the names of what each process leaves, before ``-of-N``.
        ranks: the processes.

    Raises:
        DistributedError: it is refused.
    """
    found = sorted(Path(folder).glob(f"{kept}-of-*"))
    others = [path for path in found if path.stem.rpartition("-of-")[2] != str(ranks.size)]
    if others:
        raise DistributedError(
            f"resume {folder}: {others[0].name} is of a run with another number of "
            f"processes than {ranks.size}; start as many as then, or remove the folder"
        )
