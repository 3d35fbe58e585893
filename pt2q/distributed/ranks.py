"""The processes that work together, and what they tell each other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pt2q.errors import DistributedError
from pt2q.ir.storage import packed, unpacked
from pt2q.ir.torch_private import default_store

T = TypeVar("T")
# Where a process that ends leaves why.
_WORDS = "pt2q/last_words"


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
        with self._one_may_be_gone():
            dist.all_gather_object(found, packed(value), group=self.group)
        return [unpacked(one) for one in found]

    def total(self, x: Tensor) -> Tensor:
        """Return the sum of what each process gives; each has to call it.

        Processes are added up in no certain order: give numbers whose sums are exact.

        Args:
            x: of one shape and type everywhere.

        Raises:
            DistributedError: a process is gone.
        """
        if self.size == 1:
            return x
        on_cuda = dist.get_backend(self.group) == "nccl"
        summed = x.to("cuda") if on_cuda else x.clone(memory_format=torch.contiguous_format)
        with self._one_may_be_gone():
            dist.all_reduce(summed, group=self.group)
        return summed.to(x.device)

    def share(self, work: Callable[[], T]) -> list[T]:
        """Do each process's part, and return the parts of all, in their order.

        Args:
            work: this one's part; its result pickles.

        Raises:
            DistributedError: another process failed, or is gone.
        """
        if self.size == 1:
            return [work()]
        result: T | None = None
        failure: Exception | None = None
        try:
            result = work()
        except Exception as error:  # whatever it is, the others have to hear of it
            failure = error
        found = self.gather((_said(failure), result))
        self._stop_together(failure, [said for said, _ in found])
        return [part for _, part in found]

    @contextmanager
    def _one_may_be_gone(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            reason = last_words() or f"{str(error).splitlines()[0]}; its own output says why"
            raise DistributedError(
                f"process {self.rank} of {self.size}: another process is gone ({reason}); nothing "
                "was written"
            ) from error

    def agree(self, failure: BaseException | None) -> None:
        """Go on together or stop together.

        Args:
            failure: what went wrong here, if anything did.

        Raises:
            DistributedError: something went wrong in another process.
            BaseException: ``failure`` itself.
        """
        self._stop_together(failure, self.gather(_said(failure)))

    def _stop_together(self, failure: BaseException | None, said: list[str | None]) -> None:
        if failure is not None:
            raise failure
        failed = next((i for i, text in enumerate(said) if text is not None), None)
        if failed is not None:
            raise DistributedError(f"process {failed} of {self.size} failed: {said[failed]}")


def _said(failure: BaseException | None) -> str | None:
    return None if failure is None else f"{type(failure).__name__}: {failure}"


ALONE = Ranks()
"""This process, with no others."""


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
    except BaseException as error:
        leave_word(f"process {dist.get_rank()}: {_said(error)}")
        raise
    finally:
        dist.destroy_process_group()


def leave_word(text: str) -> None:
    """Let others know why this process ends, when they next look for it.

    Args:
        text: what went wrong.
    """
    with suppress(RuntimeError):
        default_store().set(_WORDS, text)


def last_words() -> str:
    """What a process that ended has left, "" for nothing."""
    with suppress(RuntimeError):
        store = default_store()
        if store.check([_WORDS]):
            return str(store.get(_WORDS).decode())
    return ""
