"""What a quantizer decided, node by node, as a table that can be read or queried."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

HEADERS = ("node", "module", "operator", "decision")


@dataclass(frozen=True)
class Row:
    """The decision on one node.

    Args:
        node: its name in the graph.
        module: the qualified name of the module it was traced in, "" for the root.
        operator: its target, such as ``aten.linear.default``.
        quantized: whether the quantizer annotated it.
        how: ``int8 static, weight int8 per-channel``, or ``float: `` and the reason.
    """

    node: str
    module: str
    operator: str
    quantized: bool
    how: str

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """The row as it is printed."""
        return self.node, self.module, self.operator, self.how


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

    def __str__(self) -> str:
        table = [HEADERS, *(row.cells for row in self.rows)]
        widths = [max(len(cells[i]) for cells in table) for i in range(len(HEADERS))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
            for cells in table
        ]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join([*lines, self.summary()])

    def summary(self) -> str:
        """One line: how much is quantized, and the commonest reasons for what is not."""
        line = f"{len(self.quantized)} of {len(self.rows)} operators quantized"
        reasons = Counter(row.how.removeprefix("float: ") for row in self.left_float)
        if not reasons:
            return line
        words = [f"{number}x {reason}" for reason, number in reasons.most_common(3)]
        more = len(reasons) - len(words)
        rest = f"; {more} more reason{'s' if more > 1 else ''}" if more else ""
        return f"{line}; in float: {'; '.join(words)}{rest}"
