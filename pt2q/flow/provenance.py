"""Where a quantized model comes from: in its record, and in the files that are made of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, TypeVar

import torch
from torch import Tensor

from pt2q.ir.module import QuantGraphModule
from pt2q.ir.torch_private import pytree
from pt2q.spec import Quantizer

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


@dataclass(frozen=True)
class Provenance:
    """Where a quantized model comes from; in its record.

    Attributes:
        quantizer: its class, and its table where a class has several.
        statements: what it was told, a line each.
        trained: ranges were found in training, not by calibration.
        data: what it was calibrated on, where that is known.
        recipe: the text of the recipe; "" where there was none.
        sqnr: decibels of the converted model against float, on data held out.
        held_out: on so many batches.
        versions: of pt2q and torch, when it was prepared.
    """

    quantizer: str
    statements: tuple[str, ...] = ()
    trained: bool = False
    data: DataUsed | None = None
    recipe: str = ""
    sqnr: float | None = None
    held_out: int = 0
    versions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, quantizer: Quantizer, *, trained: bool) -> Provenance:
        """What is known when a model is prepared.

        Args:
            quantizer: that annotates it.
            trained: it is prepared for training.
        """
        said = getattr(quantizer, "statements", None)
        statements = tuple(map(str, said())) if callable(said) else ()
        versions = {"pt2q": version("pt2q"), "torch": torch.__version__}
        return cls(_name(quantizer), statements, trained, versions=versions)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, the same in every run; what is not known is left out."""
        data = self.data
        found = {
            "quantizer": self.quantizer,
            "statements": list(self.statements),
            "trained": self.trained,
            "calibration": data and {"batches": data.batches, "sha256": data.sha256},
            "recipe": self.recipe,
            "sqnr": self._measured(),
            "versions": dict(sorted(self.versions.items())),
        }
        return {key: value for key, value in found.items() if value not in (None, "", [], False)}

    def _measured(self) -> dict[str, Any] | None:
        # A tenth of a decibel: what is beyond it differs from processor to processor.
        known = self.sqnr is not None and self.sqnr == self.sqnr
        return {"decibels": _finite(self.sqnr), "batches": self.held_out} if known else None


def provenance_of(model: QuantGraphModule) -> Provenance:
    """Where a prepared or converted model comes from."""
    found = model.record.get(Provenance)
    return Provenance("unknown") if found is None else found


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


def _name(quantizer: Quantizer) -> str:
    kind = type(quantizer)
    return f"{kind.__module__}.{kind.__qualname__}"


def _finite(value: float | None) -> float | str:
    assert value is not None
    return round(value, 1) if abs(value) != float("inf") else "equal"
