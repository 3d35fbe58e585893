"""How far a calibration in pieces came: what observers saw, and the values between two pieces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from pt2q.algorithms.engine import Walk
from pt2q.algorithms.engine.store import KeptFiles
from pt2q.distributed import Ranks
from pt2q.distributed.checkpoint import check_processes, statistics_of
from pt2q.errors import DistributedError
from pt2q.files import replacing

_INDEX = "index"


@dataclass(frozen=True)
class Pieces:
    """Where a process keeps how far it came.

    An index says which files hold the values; files that it names stay until there is another one.

    Args:
        store: keeps the values.
        ranks: the processes; a run goes on with as many as it began with.
        observers: by name.
    """

    store: KeptFiles
    ranks: Ranks
    observers: Mapping[str, Any]

    @classmethod
    def of(cls, folder: str | PathLike[str], ranks: Ranks, observers: Mapping[str, Any]) -> Pieces:
        """Where one of several processes keeps it.

        Args:
            folder: made when missing.
            ranks: the processes.
            observers: by name, to know the model by.

        Raises:
            DistributedError: the folder is of another number of processes.
        """
        check_processes(folder, "pieces-*", ranks)
        own = Path(folder) / f"pieces-{ranks.rank}-of-{ranks.size}"
        return cls(KeptFiles(own), ranks, observers)

    @property
    def path(self) -> Path:
        """The index."""
        return self.store.folder / _INDEX

    def save(self, walk: Walk, run: str) -> None:
        """Keep how far a walk came; it stands between two pieces.

        Args:
            walk: keeps its values in ``store``.
            run: tells its data and its weights apart from others.
        """
        content = {
            "run": [run, *self._model(walk)],
            "position": walk.position,
            "values": self.store.index(),
            "statistics": statistics_of(self.observers),
        }
        with replacing(self.path) as draft:
            torch.save(content, draft)
        self.store.forget_dropped()

    def restore(self, walk: Walk, run: str) -> None:
        """Put a walk and the observers where an earlier run was stopped, if one was.

        Args:
            walk: at its beginning.
            run: tells its data and its weights apart from others.

        Raises:
            DistributedError: what was kept is of another model or other data.
        """
        if not self.path.exists():
            return
        content = torch.load(self.path, weights_only=True)
        if content["run"] != [run, *self._model(walk)]:
            raise DistributedError(
                f"resume {self.path}: it is of another model or other data; start as then, or "
                "remove the folder"
            )
        nodes = {node.name: node for node in walk.schedule.nodes}
        self.store.restore(content["values"], nodes)
        for name, statistics in content["statistics"].items():
            self.observers[name].restore(statistics)
        walk.position = int(content["position"])

    def _model(self, walk: Walk) -> list[str]:
        """Names of nodes and of observers."""
        return [*(node.name for node in walk.schedule.nodes), *self.observers]
