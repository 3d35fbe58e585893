"""Decisions as text: a table broken to the terminal, and a summary with what can be done."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from pt2q.quantizers.toolkit.reasons import Reason
from pt2q.quantizers.toolkit.report.decisions import Row, by_reason
from pt2q.tables import stacked_table, text_table, text_width

HEADERS = ("node", "module", "operator", "decision")
MANY = 8
"""So many rows of one module that differ in the node alone are printed as one."""
NARROWEST = 40
"""Columns that a decision needs beside its node; with fewer it gets lines of its own."""


def table_text(rows: Sequence[Row], width: int | None) -> str:
    """A line per row, or per many rows that say the same.

    Args:
        rows: the decisions.
        width: columns of the terminal; None breaks no line.
    """
    named = any(row.by for row in rows)
    headers = (*HEADERS[:3], "by", HEADERS[3]) if named else HEADERS
    lines: list[tuple[str, ...]] = [
        (row.node, row.module, row.operator, *([row.by] if named else []), row.how)
        for row in _gathered(rows)
    ]
    whole = text_table(headers, lines)
    if width is None or text_width(whole) <= width:
        return whole
    names = [line[:-1] for line in lines]
    if width - text_width(text_table(headers[:-1], names)) - 2 >= NARROWEST:
        return text_table(headers, lines, width=width)
    return stacked_table(headers[:-1], names, [line[-1] for line in lines], width=width)


def summary_text(rows: Sequence[Row], width: int) -> str:
    """How much is quantized, and every reason for what is not, with its code and advice.

    Args:
        rows: the decisions.
        width: lines are broken there.
    """
    found = by_reason(rows)
    left = sum(map(len, found.values()))
    head = f"{len(rows) - left} of {len(rows)} operators quantized"
    if not found:
        return head
    lines = [f"{head}; {left} in float:"]
    for reason, alike in found.items():
        lines += _reason_lines(reason, alike, width)
    return "\n".join(lines)


def _reason_lines(reason: Reason, rows: Sequence[Row], width: int) -> list[str]:
    names = Counter(_short(row.operator) for row in rows).most_common()
    which = ", ".join(f"{count} {name}" if count > 1 else name for name, count in names)
    lines = _wrapped(f"{reason} [{reason.code}]", f"{len(rows):5d} x ", width)
    lines += _wrapped(which, " " * 10, width)
    return lines + (_wrapped(reason.advice, " " * 8 + "> ", width) if reason.advice else [])


def _short(operator: str) -> str:
    """``aten.add`` for ``aten.add.Tensor``: as recipes name operators."""
    return ".".join(operator.split(".")[:2])


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


def _gathered(rows: Sequence[Row]) -> list[Row]:
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
