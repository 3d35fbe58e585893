"""A digest of the data that a model was shown."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from pt2q.ir.torch_private import pytree

T = TypeVar("T")


@dataclass(frozen=True)
class DataUsed:
    """Which data a model was calibrated on.

    Attributes:
        batches: how many.
        sha256: of their types, shapes and bytes, in order; see `DataDigest`.
    """

    batches: int
    sha256: str


class DataDigest:
    """A SHA-256 of batches: of the type, shape and bytes of each tensor, and of all other values.

    The same values have the same digest, whatever file or loader they come from.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._batches = 0

    def add(self, batch: Any) -> None:
        """Take in the next batch.

        Args:
            batch: a tensor, or tensors in tuples, lists or dicts.
        """
        self._batches += 1
        for leaf in pytree.tree_leaves(batch):
            if not isinstance(leaf, Tensor):
                self._hash.update(f"{leaf!r};".encode())
                continue
            self._hash.update(f"{leaf.dtype}{tuple(leaf.shape)};".encode())
            values = leaf.detach().cpu().contiguous().reshape(-1)
            self._hash.update(values.view(torch.uint8).numpy().tobytes())

    def watching(self, batches: Iterable[T]) -> Iterator[T]:
        """Batches one by one, each taken in as it passes.

        Args:
            batches: all of them, in order.
        """
        for batch in batches:
            self.add(batch)
            yield batch

    def result(self) -> DataUsed:
        """What was taken in so far."""
        return DataUsed(self._batches, self._hash.hexdigest())

    @classmethod
    def of(cls, batches: Iterable[Any]) -> DataUsed:
        """The digest of some batches, in order."""
        found = cls()
        for batch in batches:
            found.add(batch)
        return found.result()
