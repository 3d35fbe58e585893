"""What a streaming histogram keeps on the host: summaries not counted yet, and how much was seen.

Plain objects beside the module, where access is cheap.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pt2q.numerics.sampling import Summary
from pt2q.observers.histogram.side_by_side import kept, room_for

_MOST_ROOM = 2048


@dataclass(slots=True)
class Waiting:
    """Summaries not counted yet, of one weight."""

    weight: int = 1
    size: int = 0
    largest: Tensor | float = 0.0
    values: list[Tensor] = field(default_factory=list)
    minima: list[Tensor] = field(default_factory=list)
    maxima: list[Tensor] = field(default_factory=list)
    room: Tensor | None = None
    used: int = 0
    free: int = 0

    def take_whole(self, flat: Tensor, largest: float) -> None:
        """Add a small tensor, float32 on the host, as it is.

        It goes into room that was made for several, twice as many each time: a Python object for
        each of thousands of them would keep the garbage collector busy.
        """
        size, start = flat.shape[0], self.used
        end = start + size
        if end > self.free or self.room is None:
            self._make_room(size)
            start, end = 0, size
        self.room[start:end].copy_(flat)  # type: ignore[index]
        self.used = end
        self.size += size
        if largest > self.largest:
            self.largest = largest

    def _make_room(self, size: int) -> None:
        self.close()
        self.free = min(max(size, 2 * self.free), max(size, _MOST_ROOM))
        self.room = room_for(self.free)

    def close(self) -> None:
        """Have all that was taken in the lists."""
        if self.room is not None and self.used:
            self.values.append(self.room[: self.used])
        self.room, self.used = None, 0

    def take(self, summary: Summary, largest: Tensor | float) -> None:
        """Add a summary; ``largest`` is a number on the host, or the largest so far of all."""
        # Copies: the caller may write over a tensor that was taken whole.
        self.values.append(kept(summary.values))
        if summary.minima is not None and summary.maxima is not None:
            self.minima.append(kept(summary.minima))
            self.maxima.append(kept(summary.maxima))
        if isinstance(largest, Tensor) or isinstance(self.largest, Tensor):
            self.largest = largest
        else:
            self.largest = max(self.largest, largest)
        self.size += summary.values.shape[0]

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies and pickles hold the values, not what lies beside them.
        self.close()
        lists = ([part.clone() for part in p] for p in (self.values, self.minima, self.maxima))
        return Waiting, (self.weight, self.size, self.largest, *lists)


@dataclass(slots=True)
class Totals:
    """How much was seen: whole numbers."""

    calls: int = 0
    elements: int = 0
    samples: int = 0
    blocks: int = 0
    whole: int = 0

    def take(self, summary: Summary) -> None:
        """Count a summary in."""
        size = summary.values.shape[0]
        self.calls += 1
        if summary.minima is None:
            self.whole += size
            return
        self.elements += size * summary.weight
        self.samples += size
        self.blocks += summary.minima.shape[0]
