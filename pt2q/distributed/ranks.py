"""The processes that work together, and what they tell each other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from pt2q.errors import DistributedError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those that work together; a single one where none were started.

    Args:
        rank: the place of this process.
        size: how many there are.
        group: the processes; None for all.
    """

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None

    @staticmethod
    def of(group: dist.ProcessGroup | None = None) -> Ranks:
        """Return the processes of a group, or this one alone where there is no group.

        Args:
            group: the processes; None for all.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return Ranks()
        return Ranks(dist.get_rank(group), dist.get_world_size(group), group)

    def gather(self, value: Any) -> list[Any]:
        """Return what each process says, in their order; each has to call it.

        Args:
            value: anything that pickles.

        Raises:
            DistributedError: a process is gone.
        """
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(found, value, group=self.group)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise DistributedError(
                f"process {self.rank} of {self.size}: another process is gone ({reason}); its own "
                "output says why; nothing was written"
            ) from error
        return found

    def agree(self, failure: BaseException | None) -> None:
        """Go on together or stop together.

        Args:
            failure: what went wrong here, if anything did.

        Raises:
            DistributedError: something went wrong in another process.
            BaseException: ``failure`` itself.
        """
        said = None if failure is None else f"{type(failure).__name__}: {failure}"
        failures = [(i, text) for i, text in enumerate(self.gather(said)) if text is not None]
        if failure is not None:
            raise failure
        if failures:
            rank, text = failures[0]
            raise DistributedError(f"process {rank} of {self.size} failed: {text}")


def together(ranks: Ranks, work: Callable[[], T]) -> T:
    """Do what every process does; when one fails, all stop with its message.

    Args:
        ranks: the processes.
        work: this one's part.

    Raises:
        DistributedError: another process failed.
    """
    failure: BaseException | None = None
    try:
        result = work()
    except Exception as error:  # whatever it is, the others have to hear of it
        failure = error
    ranks.agree(failure)
    return result


@contextmanager
def joined(timeout: float = 1800.0) -> Iterator[Ranks]:
    """Join the processes that ``torchrun`` started, for a block; alone where it started none.

    Args:
        timeout: after so many seconds without an answer another process counts as gone.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1 or dist.is_initialized():
        yield Ranks.of()
        return
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    try:
        yield Ranks.of()
    finally:
        dist.destroy_process_group()
