"""Tensors of a `.pt`, mapped from the file where its form allows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from pt2q.app.data.fitting import Item, fitted
from pt2q.app.data.source import Chain, Source
from pt2q.deploy.signature import Batch, Signature
from pt2q.errors import DataError
from pt2q.library_output import first_line

_AT_ONCE = 1 << 24
"""Bytes that are read before a file is mapped anew: what was read of a mapping stays in memory."""


class TensorFile(Source):
    """A `.pt`: a tensor, a tuple, a dict by name, or a list of such things.

    Args:
        file: the file.
        signature: of the model.

    Raises:
        DataError: it is not readable, or does not fit.
    """

    def __init__(self, file: Path, signature: Signature) -> None:
        self.file, self.where, self.signature = file, f"calibration data {file}", signature
        self.count = sum(map(len, self._items(self._content()[0])))

    def __len__(self) -> int:
        return self.count

    def read(self, numbers: Sequence[int]) -> Iterator[Batch]:
        """See `Source.read`."""
        at = 0
        while at < len(numbers):
            for batch in self._mapped_once(numbers[at:]):
                at += 1
                yield batch

    def _mapped_once(self, numbers: Sequence[int]) -> Iterator[Batch]:
        """Some of the calls, as far as one mapping of the file goes."""
        content, mapped = self._content()
        read = 0
        for batch in Chain(self._items(content)).read(numbers):
            yield tuple(tensor.clone() for tensor in batch)
            read += sum(tensor.nbytes for tensor in batch)
            if mapped and read >= _AT_ONCE:
                return

    def _items(self, content: Any) -> tuple[Item, ...]:
        items = content if isinstance(content, list) else [content]
        return tuple(fitted(self.where, item, self.signature, in_order=False) for item in items)

    def _content(self) -> tuple[Any, bool]:
        """What the file holds, and whether it is mapped: other forms are read as a whole."""
        try:
            with self.file.open("rb") as stream:
                mapped = stream.read(2) == b"PK"  # as torch.save writes since 1.6
            found = torch.load(self.file, mmap=mapped, weights_only=True, map_location="cpu")
        except UnpicklingError as error:
            raise DataError(
                f"{self.where}: not readable: damaged, or it holds more than tensors, lists, "
                "tuples and dicts, which would run code to be read"
            ) from error
        except Exception as error:
            raise DataError(f"{self.where}: not readable: {first_line(error)}") from error
        return found, mapped
