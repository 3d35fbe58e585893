"""What a Python function gives: any iterable of calls, gone through as often as it is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pt2q.algorithms.engine.runner import seeded
from pt2q.app.data.fitting import fitted
from pt2q.app.data.source import Source
from pt2q.deploy.signature import Batch, Signature
from pt2q.errors import DataError, Pt2qError
from pt2q.library_output import first_line

SEED = 0
"""Of what a stream draws at random from torch: each run through it draws the same."""


class Stream(Source):
    """The calls of an iterable; a function that gives an iterator is called for each run.

    Args:
        where: what it is, as messages say it.
        function: gives the calls: a tensor, tuple or dict is taken as one of a file is; anything
            else that can be gone through, a ``DataLoader`` for instance, gives several of them.
        signature: of the model.
        limit: the most calls there are to be; no more are read.

    Raises:
        DataError: it fails, gives nothing, or what does not fit.
    """

    by_number = False

    def __init__(
        self, where: str, function: Callable[[], Any], signature: Signature, limit: int | None
    ) -> None:
        self.where, self.signature, self.function = where, signature, function
        made = self._given()
        self.kept = None if isinstance(made, Iterator) else made
        self.count = sum(1 for _ in islice(self._calls(made), limit))

    def __len__(self) -> int:
        return self.count

    def read(self, numbers: Sequence[int]) -> Iterator[Batch]:
        """See `Source.read`."""
        # A generator is used up by one run: its function makes another one for the next.
        calls = self._calls(self._given() if self.kept is None else self.kept)
        done = 0
        for number in numbers:
            batch = next(islice(calls, number - done, None), None)
            if batch is None:
                raise DataError(
                    f"{self.where}: it gave {self.count} call(s) at first, and when it was gone "
                    "through again fewer: let it give the same each time"
                )
            done = number + 1
            yield batch

    def _given(self) -> Iterable[Any]:
        with self._complaining("calling it"), seeded(SEED):
            made = self.function()
        if isinstance(made, Tensor | Mapping | tuple | np.ndarray):
            return [made]
        if isinstance(made, str) or not isinstance(made, Iterable):
            raise DataError(
                f"{self.where}: expected several calls of the model to go through, got "
                f"{type(made).__name__}: let it yield them, or return a list or a DataLoader"
            )
        return made

    def _calls(self, given: Iterable[Any]) -> Iterator[Batch]:
        for number, element in enumerate(self._elements(given), 1):
            where = f"{self.where}, element {number}"
            item = fitted(where, _as_tensors(element), self.signature, in_order=False)
            for batch in item.read(range(len(item))):
                yield tuple(tensor.clone() for tensor in batch)  # its memory may be used again

    def _elements(self, given: Iterable[Any]) -> Iterator[Any]:
        """Each element; what is drawn at random on the way is drawn from a seed of its own."""
        generator, rest = torch.default_generator, None
        own = torch.Generator().manual_seed(SEED).get_state()
        for number in count(1):
            before = generator.get_state()
            generator.set_state(own)
            try:
                with self._complaining(f"element {number}"):
                    rest = iter(given) if rest is None else rest
                    element = next(rest, _END)
            finally:
                own = generator.get_state()
                generator.set_state(before)
            if element is _END:
                return
            yield element

    @contextmanager
    def _complaining(self, at: str) -> Iterator[None]:
        try:
            yield
        except Pt2qError:
            raise
        except (Exception, SystemExit) as error:  # it is the user's code
            raise DataError(f"{self.where}: it fails, {at}: {first_line(error)}") from error


_END = object()


def _as_tensors(element: Any) -> Any:
    """An element as data of a file is: arrays as tensors, a list as a tuple."""
    if isinstance(element, Mapping):
        return {name: _as_tensor(value) for name, value in element.items()}
    if isinstance(element, tuple | list):
        return tuple(map(_as_tensor, element))
    return _as_tensor(element)


def _as_tensor(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))
    return value
