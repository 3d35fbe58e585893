"""Threads in the place of processes: what they tell each other goes through memory."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Barrier
from typing import Any, TypeVar

import torch
from torch import Tensor

from pt2q.distributed import Ranks

T = TypeVar("T")


@dataclass(frozen=True)
class ThreadRanks(Ranks):
    """One of several threads that work together."""

    board: list[Any] = field(default_factory=list)
    barrier: Barrier = field(default_factory=lambda: Barrier(1))

    def gather(self, value: Any) -> list[Any]:
        self.board[self.rank] = value
        self.barrier.wait(60)
        found = list(self.board)
        self.barrier.wait(60)
        return found

    def total(self, x: Tensor) -> Tensor:
        # The last first: as exact as it has to be, no order makes a difference.
        return torch.stack(self.gather(x)[::-1]).sum(0)


def in_threads(size: int, work: Callable[[Ranks], T]) -> list[T]:
    """What each of several threads comes to."""
    board, barrier = [None] * size, Barrier(size)

    def run(rank: int) -> T:
        torch.set_num_threads(1)
        try:
            return work(ThreadRanks(rank, size, None, board, barrier))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))
