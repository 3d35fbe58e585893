"""Rows of a comparison as they are printed."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pt2q.debug.comparison.row import ComparisonRow
from pt2q.debug.error import Error
from pt2q.debug.rounding.row import RoundingRow
from pt2q.tables import stacked_table, text_table, text_width

HEADERS = (
    "node",
    "operator",
    "module",
    "local dB",
    "total dB",
    "weight dB",
    "clipped",
    "levels",
    "parameters",
)
ALWAYS = 2  # the columns that are printed even where they are empty
RIGHT = frozenset({"local dB", "total dB", "weight dB", "clipped", "levels"})


def comparison_table(rows: Sequence[ComparisonRow], width: int | None = None) -> str:
    """A line per row; columns in which no row has anything are left out.

    Args:
        rows: of the comparison.
        width: columns of the terminal: where a table is wider, what is no figure stands below the
            name of the node. None never breaks a line.
    """
    lines = [_cells(row) for row in rows]
    kept = [i for i in range(len(HEADERS)) if i < ALWAYS or any(line[i] for line in lines)]
    headers = [HEADERS[i] for i in kept]
    shown = [[line[i] for i in kept] for line in lines]
    whole = text_table(headers, shown, right=RIGHT)
    if width is None or text_width(whole) <= width:
        return whole
    figures = [i for i, header in enumerate(headers) if i == 0 or header in RIGHT]
    narrow = [[cells[i] for i in figures] for cells in shown]
    below = [_below(row, cells) for row, cells in zip(rows, lines, strict=True)]
    return stacked_table([headers[i] for i in figures], narrow, below, right=RIGHT, width=width)


def _below(row: ComparisonRow, cells: Sequence[str]) -> str:
    """What is no figure."""
    place = f"{row.operator} in {row.module}" if row.module else row.operator
    return "\n".join(filter(None, (place, cells[-1])))


def outputs_line(outputs: Sequence[Error | None], batches: int) -> str:
    """How far the outputs are off, over how many batches."""
    found = ", ".join("no tensor" if error is None else _error(error) for error in outputs)
    return f"outputs over {batches} batch{'' if batches == 1 else 'es'}: {found}"


def _cells(row: ComparisonRow) -> tuple[str, ...]:
    shown = max(row.roundings, key=lambda r: r.clipped, default=None)
    worst = min(row.weights, key=lambda w: w.error.rank, default=None)
    return (
        " + ".join((*row.includes, row.node)),
        row.operator,
        row.module,
        _decibels(row.local),
        _decibels(row.total),
        "" if worst is None else _decibels(worst.error),
        "" if shown is None else _percent(shown.clipped),
        "" if shown is None or shown.levels is None else _percent(shown.levels),
        "" if shown is None else _parameters(shown),
    )


def _decibels(error: Error | None) -> str:
    if error is None:
        return "-"
    if error.nonfinite:
        return f"{error.nonfinite} NaN/inf"
    if error.is_exact:
        return "exact"
    if error.differing is not None:
        return f"{error.differing} differ"
    return f"{error.sqnr:.1f}"


def _error(error: Error) -> str:
    text = _decibels(error)
    plain = not (error.nonfinite or error.is_exact or error.differing is not None)
    return f"{text} dB" if plain else text


def _percent(share: float) -> str:
    if 0 < share < 0.0001:
        return "<0.01 %"
    return f"{100 * share:.2f} %" if 0 < share < 0.01 else f"{100 * share:.0f} %"


def _parameters(row: RoundingRow) -> str:
    scale = _span(row.scale, ".3g")
    zero = _span(row.zero_point, ".4g")
    kind = " dynamic" if row.dynamic else ""
    return f"{row.dtype}[{row.quant_min}, {row.quant_max}]{kind}, scale {scale}, zero {zero}"


def _span(pair: tuple[float, float], form: str) -> str:
    low, high = pair
    if low == high or math.isclose(low, high, rel_tol=1e-3):
        return format(low, form)
    return f"{low:{form}}..{high:{form}}"
