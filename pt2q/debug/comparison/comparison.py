"""What a comparison found, as a table that can be read, queried and stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from pt2q.account import Account
from pt2q.debug.comparison.row import ComparisonRow, Unmatched
from pt2q.debug.comparison.text import comparison_table, outputs_line
from pt2q.debug.error import Error
from pt2q.listing import listed

Measure = Literal["local", "total"]


@dataclass(frozen=True)
class Comparison(Account):
    """Where a quantized model departs from its float model.

    Args:
        rows: in the order of the float graph; bodies of control flow follow it.
        outputs: the errors of the models' outputs, flat; None for what is no tensor.
        unmatched: what could not be compared, and why.
        notes: what else is to be known when reading the figures.
        batches: how many were run.
    """

    rows: tuple[ComparisonRow, ...]
    outputs: tuple[Error | None, ...]
    unmatched: tuple[Unmatched, ...] = ()
    notes: tuple[str, ...] = ()
    batches: int = 0

    def worst(self, n: int = 5, by: Measure = "local") -> Comparison:
        """A shorter report: the rows with the largest errors, the largest first.

        Args:
            n: how many rows at most. Rows without an error are never among them.
            by: "local" for culprits, "total" for what they led to.

        Raises:
            ValueError: ``by`` is neither.
        """
        if by not in ("local", "total"):
            raise ValueError(f"by must be 'local' or 'total', found {by!r}")
        found = [(getattr(row, by), row) for row in self.rows]
        wrong = [(e, row) for e, row in found if e is not None and not e.is_exact]
        wrong.sort(key=lambda pair: pair[0].rank)
        return replace(self, rows=tuple(row for _, row in wrong[:n]))

    def __iter__(self) -> Iterator[ComparisonRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, node: str) -> ComparisonRow:
        """The row of a node of the float model, by its name; that which includes it, if any.

        Raises:
            KeyError: the node has no row.
        """
        for row in self.rows:
            if node == row.node or node in row.includes:
                return row
        raise KeyError(f"no row for node {node!r}; the report has {len(self.rows)} rows")

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists."""
        return {
            "batches": self.batches,
            "rows": [row.to_dict() for row in self.rows],
            "outputs": [None if e is None else e.to_dict() for e in self.outputs],
            "unmatched": [item.to_dict() for item in self.unmatched],
            "notes": list(self.notes),
        }

    def text(self, width: int | None = None) -> str:
        """The table, and below it what is to be known beside it.

        Args:
            width: columns of the terminal; None never breaks a line of the table.
        """
        lines = [comparison_table(self.rows, width), self.summary()]
        lines += [f"note: {note}" for note in self.notes]
        if self.unmatched:
            lines.append(listed(f"not compared: {len(self.unmatched)}", self.unmatched))
        return "\n".join(lines)

    def summary(self) -> str:
        """One line: how far the outputs are off, over how many batches."""
        return outputs_line(self.outputs, self.batches)
