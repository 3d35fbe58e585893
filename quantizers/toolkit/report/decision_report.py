"""What a quantizer decided, node by node, as a report that can be read, queried and stored."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from pt2q.quantizers.toolkit.reasons import Reason
from pt2q.quantizers.toolkit.report.decisions import Row, by_reason
from pt2q.quantizers.toolkit.report.layout import summary_text, table_text


@dataclass(frozen=True)
class Report:
    """The decisions on every node that computes on floating point tensors.

    Args:
        rows: in the order of the graph.
    """

    rows: tuple[Row, ...] = ()

    @property
    def quantized(self) -> tuple[Row, ...]:
        """The rows that are quantized."""
        return tuple(row for row in self.rows if row.quantized)

    @property
    def left_float(self) -> tuple[Row, ...]:
        """The rows that stay in float."""
        return tuple(row for row in self.rows if not row.quantized)

    def counts(self) -> dict[str, tuple[int, int]]:
        """(quantized, left in float) per operator, the most frequent first."""
        total = Counter(row.operator for row in self.rows)
        quantized = Counter(row.operator for row in self.quantized)
        return {
            name: (quantized[name], number - quantized[name])
            for name, number in sorted(total.items(), key=lambda item: (-item[1], item[0]))
        }

    def reasons(self) -> dict[Reason, tuple[Row, ...]]:
        """The rows that stay in float, by their reason, the most frequent reason first."""
        return by_reason(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, node: str) -> Row:
        """The row of a node, by its name.

        Raises:
            KeyError: the node has no row.
        """
        for row in self.rows:
            if row.node == node:
                return row
        raise KeyError(f"no row for node {node!r}; the report has {len(self.rows)} rows")

    def to_json(self, indent: int | None = 2) -> str:
        """The report as JSON text: a list of rows, reasons with their codes and advice."""
        return json.dumps([row.to_dict() for row in self.rows], indent=indent)

    def __str__(self) -> str:
        return self.text()

    def text(self, width: int | None = None) -> str:
        """The table and the summary below it.

        Args:
            width: columns of the terminal; None never breaks a line of the table, and the
                summary's at 100.
        """
        return f"{self.table(width)}\n\n{self.summary(width or 100)}"

    def table(self, width: int | None = None) -> str:
        """A line per row; where that is wider than ``width``, decisions are broken or moved.

        Rows of one module that say the same of many operators, as those of an unrolled layer do,
        are one line at the place of the first.
        """
        return table_text(self.rows, width)

    def summary(self, width: int = 100) -> str:
        """How much is quantized, and every reason for what is not, with what can be done.

        Args:
            width: lines are broken there.
        """
        return summary_text(self.rows, width)
