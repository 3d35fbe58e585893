"""One value that both models have: how the quantized model holds it, and its errors so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pt2q.debug.comparison.places import Place
from pt2q.debug.error_sums import ErrorSums
from pt2q.debug.identity import Key
from pt2q.debug.rounding.functions import Rounding, to_integers, to_reals
from pt2q.ir.qparams import QParams
from pt2q.quantizers.toolkit.reasons import Reason


@dataclass
class CommonValue:
    """One value that both models have.

    Args:
        key: its identity.
        here: where the float model computes it.
        there: where the quantized one does.
        rounding: what its readers see of it, as a function; None if they see it as it is.
        stored: what its integers stand for, where it is a tensor of integers.
        written_here, written_there: whether a model writes into its memory.
        total, local: the sums so far.
        calls: how often the float model computed it.
        reason: why the two cannot be compared; None if they can.
    """

    key: Key
    here: Place
    there: Place
    rounding: Rounding | None = None
    stored: QParams | None = None
    written_here: bool = False
    written_there: bool = False
    total: ErrorSums = field(default_factory=ErrorSums)
    local: ErrorSums = field(default_factory=ErrorSums)
    calls: int = 0
    reason: Reason | None = None

    def seen(self, value: Any) -> Any:
        """What readers get of a value of the quantized model, in real numbers."""
        if self.stored is not None:
            return to_reals(value, self.stored) if isinstance(value, Tensor) else value
        if self.rounding is None or not _is_real(value):
            return value
        return self.rounding(value)

    def rounded(self, value: Any) -> Any:
        """What readers get of a value of the float model."""
        if self.stored is not None and _is_real(value):
            return to_reals(to_integers(value, self.stored), self.stored).to(value.dtype)
        return value if self.rounding is None or not _is_real(value) else self.rounding(value)

    def held(self, rounded: Any) -> Any:
        """A rounded value of the float model as the quantized model holds it at this place."""
        if self.stored is not None and _is_real(rounded):
            return to_integers(rounded, self.stored)
        return rounded


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
