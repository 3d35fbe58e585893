"""Calls of a model that are read when they are needed, and never all of them at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Generic, TypeVar, overload

from pt2q.deploy.signature import Batch

T = TypeVar("T")
AT_HAND = 2**28
"""So many bytes are kept in memory rather than read again."""


class Source(ABC):
    """Where calls of a model come from."""

    by_number = True
    """A call can be read without those before it."""

    @abstractmethod
    def __len__(self) -> int:
        """How many calls there are."""

    @abstractmethod
    def read(self, numbers: Sequence[int]) -> Iterator[Batch]:
        """Read some of the calls; a stream is read as far as the last of them.

        Args:
            numbers: which, rising.

        Raises:
            DataError: one cannot be read, or is not a call of the model.
        """


@dataclass(frozen=True)
class Chain(Source):
    """Several sources, one after the other."""

    parts: tuple[Source, ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def read(self, numbers: Sequence[int]) -> Iterator[Batch]:
        """See `Source.read`."""
        ends = list(accumulate(map(len, self.parts)))
        own: dict[int, list[int]] = {}
        for number in numbers:
            place = bisect_right(ends, number)
            own.setdefault(place, []).append(number - (ends[place] - len(self.parts[place])))
        for place, wanted in own.items():
            yield from self.parts[place].read(wanted)


class Lazy(Sequence[T], Generic[T]):
    """A sequence whose elements are made when they are asked for; a slice of it is one, too."""

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> Lazy[T]: ...

    def __getitem__(self, index: int | slice) -> T | Lazy[T]:
        """One element, or some of them as another such sequence."""
        if isinstance(index, slice):
            return self.part(range(len(self))[index])
        (found,) = self.part((range(len(self))[index],))
        return found

    @abstractmethod
    def part(self, places: Sequence[int]) -> Lazy[T]:
        """Some of the elements.

        Args:
            places: where they stand in this sequence, rising.
        """

    @abstractmethod
    def __iter__(self) -> Iterator[T]: ...


@dataclass(frozen=True)
class Batches(Lazy[Batch]):
    """Some calls of a source, in their order. Each run through them reads them anew.

    Args:
        source: all of them.
        numbers: which, rising.
    """

    source: Source
    numbers: Sequence[int]

    def __len__(self) -> int:
        return len(self.numbers)

    def part(self, places: Sequence[int]) -> Batches:
        """See `Lazy.part`."""
        return Batches(self.source, [self.numbers[place] for place in places])

    def __iter__(self) -> Iterator[Batch]:
        return self.source.read(self.numbers)

    def at_hand(self) -> Sequence[Batch]:
        """The same calls in memory, where they are small and reading them reads others, too."""
        if self.source.by_number or not self.numbers:
            return self
        if len(self) * sum(tensor.nbytes for tensor in self[0]) > AT_HAND:
            return self
        return list(self)


@dataclass(frozen=True)
class Mapped(Lazy[T]):
    """What a function makes of each element of another sequence.

    Args:
        inner: the other one.
        function: of one element.
    """

    inner: Sequence[Batch]
    function: Callable[[Batch], T]

    def __len__(self) -> int:
        return len(self.inner)

    def part(self, places: Sequence[int]) -> Mapped[T]:
        """See `Lazy.part`."""
        inner = self.inner
        part = inner.part(places) if isinstance(inner, Lazy) else [inner[place] for place in places]
        return Mapped(part, self.function)

    def __iter__(self) -> Iterator[T]:
        return map(self.function, self.inner)
