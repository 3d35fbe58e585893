"""Rows of a comparison as they are printed."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pt2q.debug.comparison.row import ComparisonRow
from pt2q.debug.error import Error
from pt2q.debug.rounding.row import RoundingRow
from pt2q.tables import text_table

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


def comparison_table(rows: Sequence[ComparisonRow]) -> str:
    """A line per row; columns in which no row has anything are left out."""
    lines = [_cells(row) for row in rows]
    kept = [i for i in range(len(HEADERS)) if i < ALWAYS or any(line[i] for line in lines)]
    shown = [[line[i] for i in kept] for line in lines]
    return text_table([HEADERS[i] for i in kept], shown, right=RIGHT)


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
