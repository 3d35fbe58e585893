"""How one value differs from its reference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Error:
    """How one value differs from its reference, over all batches and calls.

    Args:
        sqnr: signal to noise ratio in dB, over the numbers that are finite in both: infinite
            where nothing differs, -infinite where the reference is zero; NaN without numbers.
        max_abs: the largest difference.
        cosine: of the angle between the two; NaN where one of them is zero.
        count: of the numbers compared.
        differing: how many integers or booleans are not equal; None for floating point values.
        nonfinite: how many numbers are NaN or infinite in one of the two only (or differ so).
        nonfinite_reference: how many are NaN or infinite in the reference.
    """

    sqnr: float
    max_abs: float
    cosine: float
    count: int
    differing: int | None = None
    nonfinite: int = 0
    nonfinite_reference: int = 0

    @property
    def is_exact(self) -> bool:
        """Whether nothing differs."""
        return self.max_abs == 0 and not self.nonfinite and not self.differing

    @property
    def rank(self) -> float:
        """By which errors are ordered, the worst first: the dB, -infinite where NaN came up."""
        return -math.inf if self.nonfinite else math.inf if math.isnan(self.sqnr) else self.sqnr

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which has no infinity: ``sqnr`` is None where it is not finite."""
        return {
            "sqnr": finite(self.sqnr),
            "exact": self.is_exact,
            "max_abs": finite(self.max_abs),
            "cosine": finite(self.cosine),
            "count": self.count,
            "differing": self.differing,
            "nonfinite": self.nonfinite,
            "nonfinite_reference": self.nonfinite_reference,
        }


def finite(value: float) -> float | None:
    """The number, or None if it is NaN or infinite."""
    return value if math.isfinite(value) else None
