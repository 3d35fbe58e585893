"""What a quantizer decided, node by node, as a table that can be read or queried."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from pt2q.quantizers.toolkit.advice import advice_for

HEADERS = ("node", "module", "operator", "decision")
MANY = 8
"""So many rows of one module that differ in the node alone are printed as one."""
NARROWEST = 40
"""Columns that a decision needs beside its node; with fewer it gets lines of its own."""


@dataclass(frozen=True)
class Row:
    """The decision on one node.

    Args:
        node: its name in the graph.
        module: the qualified name of the module it was traced in, "" for the root.
        operator: its target, such as ``aten.linear.default``.
        quantized: whether the quantizer annotated it.
        how: ``int8 static, weight int8 per-channel``, or ``float: `` and the reason.
        by: the quantizer that annotated it, where there are several; else "".
    """

    node: str
    module: str
    operator: str
    quantized: bool
    how: str
    by: str = ""

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

    def reasons(self) -> dict[str, tuple[Row, ...]]:
        """The rows that stay in float, by their reason, the most frequent reason first."""
        found: dict[str, list[Row]] = {}
        for row in self.left_float:
            found.setdefault(row.how.removeprefix("float: "), []).append(row)
        ordered = sorted(found.items(), key=lambda item: -len(item[1]))
        return {reason: tuple(rows) for reason, rows in ordered}

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
        named = any(row.by for row in self.rows)
        headers = (*HEADERS[:3], "by", HEADERS[3]) if named else HEADERS
        rows = _gathered(self.rows)
        lines: list[tuple[str, ...]] = [
            (*row.cells[:3], row.by, row.how) if named else row.cells for row in rows
        ]
        widths = [max(map(len, column)) for column in zip(headers, *lines, strict=True)]
        if width is None or sum(widths) + 2 * len(widths) - 2 <= width:
            return _aligned(headers, lines, widths)
        indent = sum(widths[:-1]) + 2 * len(widths) - 2
        if width - indent < NARROWEST:
            return _stacked(headers, lines, widths[:-1], width)
        return _aligned(headers, lines, [*widths[:-1], width - indent])

    def summary(self, width: int = 100) -> str:
        """How much is quantized, and every reason for what is not, with what can be done.

        Args:
            width: lines are broken there.
        """
        lines = [f"{len(self.quantized)} of {len(self.rows)} operators quantized"]
        reasons = self.reasons()
        if not reasons:
            return lines[0]
        lines[0] += f"; {len(self.left_float)} in float:"
        for reason, rows in reasons.items():
            lines += _wrapped(reason, f"{len(rows):5d} x ", width)
            names = Counter(_short(row.operator) for row in rows).most_common()
            which = ", ".join(f"{count} {name}" if count > 1 else name for name, count in names)
            lines += _wrapped(which, " " * 10, width)
            advice = advice_for(reason)
            lines += _wrapped(advice, " " * 8 + "> ", width) if advice else []
        return "\n".join(lines)


def _short(operator: str) -> str:
    """``aten.add`` for ``aten.add.Tensor``: as recipes name operators."""
    return ".".join(operator.split(".")[:2])


def _aligned(headers: tuple[str, ...], rows: list[tuple[str, ...]], widths: list[int]) -> str:
    """Columns two spaces apart; the last is broken to its width, under itself."""
    rule = tuple("-" * width for width in widths)
    return "\n".join(line for cells in (headers, rule, *rows) for line in _lines(cells, widths))


def _lines(cells: tuple[str, ...], widths: list[int]) -> list[str]:
    start = _padded(cells[:-1], widths)
    return _wrapped(cells[-1], start, len(start) + widths[-1])


def _padded(cells: tuple[str, ...], widths: list[int]) -> str:
    return "".join(
        f"{cell:<{width}}  " for cell, width in zip(cells, widths[: len(cells)], strict=True)
    )


def _stacked(
    headers: tuple[str, ...], rows: list[tuple[str, ...]], widths: list[int], width: int
) -> str:
    """Each decision on lines of its own, below its node."""
    lines = [_padded(headers[:-1], widths).rstrip(), "-" * min(width, sum(widths) + 6)]
    for cells in rows:
        lines.append(_padded(cells[:-1], widths).rstrip())
        lines += _wrapped(cells[-1], "    ", width)
    return "\n".join(lines)


def _wrapped(text: str, start: str, width: int) -> list[str]:
    """Lines of ``text`` after ``start``, which the following ones are indented as far as."""
    found = textwrap.wrap(
        text,
        max(width, len(start) + 20),
        initial_indent=start,
        subsequent_indent=" " * len(start),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return found or [start.rstrip()]


def _gathered(rows: tuple[Row, ...]) -> list[Row]:
    """One row for `MANY` or more that differ in the node alone."""
    alike: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        alike.setdefault((row.module, row.operator, row.how, row.by), []).append(row)
    result = []
    for row in rows:
        group = alike[row.module, row.operator, row.how, row.by]
        if len(group) < MANY or not row.module:
            result.append(row)
        elif group[0] is row:
            result.append(replace(row, node=f"{row.node} ... {group[-1].node} ({len(group)})"))
    return result
