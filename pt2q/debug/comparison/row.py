"""The rows of a comparison: what became of each value, and which could not be compared."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pt2q.debug.comparison.weights import WeightRow
from pt2q.debug.error import Error
from pt2q.debug.rounding.row import RoundingRow
from pt2q.quantizers.toolkit.reasons import Reason


@dataclass(frozen=True)
class ComparisonRow:
    """What became of the value of one operator.

    Args:
        node: its name in the float model, after the path of the control-flow body it is in.
        operator: its target, such as ``aten.linear.default``.
        module: the qualified name of the module it was traced in, "" for the root.
        counterpart: the node that gives the value in the quantized model.
        calls: how often it ran in the float model.
        local: its error when its inputs are those of the float model, rounded; the reference is
            the float operator on the same rounded inputs. None if it was never compared.
        total: its error when each model runs on its own values.
        roundings: of its value, and of inputs that are rounded for it alone.
        weights: the quantized constants that it reads.
        includes: nodes of the float model whose values the quantized model does not have, because
            it computes them as part of this one: the convolution of a folded batch norm.
    """

    node: str
    operator: str
    module: str
    counterpart: str
    calls: int
    local: Error | None
    total: Error | None
    roundings: tuple[RoundingRow, ...] = ()
    weights: tuple[WeightRow, ...] = ()
    includes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "node": self.node,
            "includes": list(self.includes),
            "operator": self.operator,
            "module": self.module,
            "counterpart": self.counterpart,
            "calls": self.calls,
            "local": None if self.local is None else self.local.to_dict(),
            "total": None if self.total is None else self.total.to_dict(),
            "roundings": [asdict(rounding) for rounding in self.roundings],
            "weights": [
                {"name": w.name, "argument": w.argument, "error": w.error.to_dict()}
                for w in self.weights
            ],
        }


@dataclass(frozen=True)
class Unmatched:
    """A value that only one of the models has, or that cannot be compared.

    Args:
        node: its name, after the path of its body.
        model: "float" or "quantized".
        reason: why; programs compare its code.
    """

    node: str
    model: str
    reason: Reason

    def __str__(self) -> str:
        return f"{self.node} ({self.model}): {self.reason}"

    def to_dict(self) -> dict[str, str]:
        """For JSON."""
        words = {"reason": self.reason.text, "code": self.reason.code}
        return {"node": self.node, "model": self.model, **words}
