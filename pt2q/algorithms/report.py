"""What algorithms did: a row per layer, and what they passed over."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from pt2q.algorithms.layers import Passed
from pt2q.tables import stacked_table

_HEADERS = ("algorithm", "layer", "output against float", "kept", "seconds")


@dataclass(frozen=True)
class Row:
    """What an algorithm did to one layer, judged on batches that the change was not made from.

    Attributes:
        algorithm: its name.
        layer: the layer's, as a node of the graph.
        module: the qualified name of the module it was written in.
        before, after: signal to noise ratio of the layer's output against float, in dB, without
            and with the change; inputs are what the quantized layers before it give.
        kept: whether the change was made.
        reason: why, in a few words.
        seconds: what it took.
    """

    algorithm: str
    layer: str
    module: str
    before: float
    after: float
    kept: bool
    reason: str
    seconds: float

    @property
    def cells(self) -> tuple[str, str, str, str, str]:
        """All but the reason, for a table."""
        error = f"{self.before:.2f} dB -> {self.after:.2f} dB"
        word = "yes" if self.kept else "no"
        return self.algorithm, self.layer, error, word, f"{self.seconds:.2f}"

    def __str__(self) -> str:
        word = "kept" if self.kept else "not kept"
        return (
            f"{self.algorithm:<16} {self.layer:<28} {self.before:7.2f} dB -> {self.after:7.2f} dB "
            f"{word:<8} {self.seconds:6.2f} s  {self.reason}"
        )


@dataclass(frozen=True)
class Report:
    """What one or several algorithms did.

    Attributes:
        rows: in the order in which it was done.
        passed: what an algorithm passed over, with its name and the reason.
    """

    rows: tuple[Row, ...] = ()
    passed: tuple[tuple[str, Passed], ...] = ()

    def __add__(self, other: Report) -> Report:
        return Report(self.rows + other.rows, self.passed + other.passed)

    def __str__(self) -> str:
        lines = [str(row) for row in self.rows]
        lines += [
            f"{name:<16} {item.name:<28} passed over: {item.reason}" for name, item in self.passed
        ]
        return "\n".join(lines)

    def text(self, width: int) -> str:
        """The same within so many columns: each reason below its row.

        Args:
            width: columns of the terminal.
        """
        rows = [row.cells for row in self.rows]
        rows += [(name, item.name, "passed over", "", "") for name, item in self.passed]
        reasons = [row.reason for row in self.rows] + [item.reason for _, item in self.passed]
        return stacked_table(_HEADERS, rows, reasons, right=("seconds",), width=width)

    def to_dict(self) -> dict[str, Any]:
        """As numbers and words, for JSON; what is infinite is None."""
        rows = [{k: _finite(v) for k, v in asdict(row).items()} for row in self.rows]
        passed = [
            {"algorithm": name, "layer": item.name, "reason": item.reason}
            for name, item in self.passed
        ]
        return {"rows": rows, "passed": passed}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def decibels(signal: float, noise: float) -> float:
    """``10 log10(signal / noise)``; infinite without noise, minus infinite if that is boundless."""
    if noise <= 0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal > 0 and noise < math.inf else -math.inf
