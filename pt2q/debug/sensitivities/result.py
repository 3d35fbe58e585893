"""What a measurement of sensitivity found, as a table that can be read, queried and stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from pt2q.account import Account
from pt2q.debug.error import finite
from pt2q.debug.sensitivities.subjects import LAYER
from pt2q.tables import text_table


@dataclass(frozen=True)
class SensitivityRow:
    """What one group of tensors, or one layer, has to do with the output.

    Args:
        nodes: whose values share quantization; of a layer, the operator.
        modules: the modules that they were written in.
        kind: ``"weight"``, ``"activation"`` or ``"layer"``.
        alone: of the output when nothing else is quantized; in dB, or what a metric says.
        without: of the output when all else is quantized.
        batches: how many were measured on.
    """

    nodes: tuple[str, ...]
    modules: tuple[str, ...]
    kind: str
    alone: float
    without: float
    batches: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which has no infinity: what is infinite is None."""
        return {
            "nodes": list(self.nodes),
            "modules": list(self.modules),
            "kind": self.kind,
            "alone_db": finite(self.alone),
            "without_db": finite(self.without),
            "batches": self.batches,
        }


@dataclass(frozen=True)
class Sensitivity(Account):
    """What each group and each layer has to do with the output, the worst first.

    Args:
        rows: ordered by ``alone``.
        whole: of the output when everything is quantized.
        measure: what the figures are, such as ``SQNR in dB``.
        batches: how many were given.
        passes: what it took, in runs of the float model over all batches, counted in operators.
    """

    rows: tuple[SensitivityRow, ...]
    whole: float
    measure: str
    batches: int
    passes: float

    def __iter__(self) -> Iterator[SensitivityRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def groups(self) -> tuple[SensitivityRow, ...]:
        """The rows of tensors that share quantization."""
        return tuple(row for row in self.rows if row.kind != LAYER)

    @property
    def layers(self) -> tuple[SensitivityRow, ...]:
        """The rows of layers."""
        return tuple(row for row in self.rows if row.kind == LAYER)

    def worst(self, n: int) -> Sensitivity:
        """A shorter one: the first rows."""
        return replace(self, rows=self.rows[:n])

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists."""
        return {
            "rows": [row.to_dict() for row in self.rows],
            "whole_db": finite(self.whole),
            "measure": self.measure,
            "batches": self.batches,
            "passes": round(self.passes, 2),
        }

    def text(self, width: int | None = None) -> str:
        """The table, and a line with the whole.

        Args:
            width: columns of the terminal; names are cut to fit. None cuts none.
        """
        room = None if width is None else max(width - 34, 16)
        lines = [
            (row.kind, _number(row.alone), _number(row.without), _cut(_names(row), room))
            for row in self.rows
        ]
        headers = ("kind", "alone", "without", "what")
        table = text_table(headers, lines, right=headers[1:3])
        return (
            f"{table}\n{self.measure}; everything quantized: {_number(self.whole).strip()}\n"
            f"{self.batches} batch(es), {self.passes:.1f} runs of the float model for each"
        )


def _names(row: SensitivityRow) -> str:
    more = f" and {len(row.nodes) - 1} more" if len(row.nodes) > 1 else ""
    place = f" in {row.modules[0]}" if row.modules else ""
    return f"{row.nodes[0]}{more}{place}"


def _cut(text: str, room: int | None) -> str:
    return text if room is None or len(text) <= room else f"{text[: room - 3]}..."


def _number(value: float) -> str:
    return "exact" if value == float("inf") else f"{value:.4g}"
