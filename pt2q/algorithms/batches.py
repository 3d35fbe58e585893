"""Calibration data that can be gone through again and again, in the same order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from pt2q.algorithms.engine.runner import seeded
from pt2q.errors import DataError


class Batches:
    """Batches of a model, each a tensor, a tuple of arguments or a dict by their names.

    Args:
        source: anything that can be gone through: a list, a ``DataLoader``, an object with
            ``__iter__``. What can be gone through only once is kept in memory. One that shuffles
            by torch's random numbers gives the same order every time.
        seed: of that order.

    Raises:
        DataError: it is a batch and not batches, or holds none.
    """

    def __init__(self, source: Iterable[Any], seed: int = 0) -> None:
        if isinstance(source, Tensor | Mapping | str) or not isinstance(source, Iterable):
            raise DataError(
                f"batches: expected several batches to go through, found "
                f"a {type(source).__name__}; a single one is given as [batch]"
            )
        self.source = list(source) if isinstance(source, Iterator) else source
        self.seed = seed
        if next(iter(self), _END) is _END:
            raise DataError("batches: there is none; give at least one, as the model is called")

    def __iter__(self) -> Iterator[Any]:
        with seeded(self.seed):  # a loader that shuffles draws its order at the first step
            rest = iter(self.source)
            first = next(rest, _END)
        if first is not _END:
            yield first
            yield from rest


_END = object()
