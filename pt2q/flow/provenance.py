"""Where a quantized model comes from: in its record, and in the files that are made of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch

from pt2q.ir.data_digest import DataUsed
from pt2q.ir.module import QuantGraphModule
from pt2q.spec import Quantizer


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


def _name(quantizer: Quantizer) -> str:
    kind = type(quantizer)
    return f"{kind.__module__}.{kind.__qualname__}"


def _finite(value: float | None) -> float | str:
    assert value is not None
    return round(value, 1) if abs(value) != float("inf") else "equal"
