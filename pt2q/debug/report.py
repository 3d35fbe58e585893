"""What a comparison found, as a table that can be read, queried and stored."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from pt2q.debug.rounding import RoundingRow
from pt2q.debug.stats import Error
from pt2q.debug.weights import WeightRow

Measure = Literal["local", "total"]

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
RIGHT = {"local dB", "total dB", "weight dB", "clipped", "levels"}


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

    @property
    def cells(self) -> tuple[str, ...]:
        """The row as it is printed."""
        shown = max(self.roundings, key=lambda r: r.clipped, default=None)
        worst = min(self.weights, key=lambda w: w.error.rank, default=None)
        return (
            " + ".join((*self.includes, self.node)),
            self.operator,
            self.module,
            _decibels(self.local),
            _decibels(self.total),
            "" if worst is None else _decibels(worst.error),
            "" if shown is None else _percent(shown.clipped),
            "" if shown is None or shown.levels is None else _percent(shown.levels),
            "" if shown is None else _parameters(shown),
        )

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
        reason: why.
    """

    node: str
    model: str
    reason: str

    def __str__(self) -> str:
        return f"{self.node} ({self.model}): {self.reason}"


@dataclass(frozen=True)
class Comparison:
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
            "unmatched": [asdict(item) for item in self.unmatched],
            "notes": list(self.notes),
        }

    def to_json(self, indent: int | None = 2) -> str:
        """The report as JSON text."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def __str__(self) -> str:
        lines = _table([HEADERS, *(row.cells for row in self.rows)])
        lines += [self.summary(), *(f"note: {note}" for note in self.notes)]
        if self.unmatched:
            lines.append(f"not compared: {len(self.unmatched)}")
            lines += [f"  {item}" for item in self.unmatched]
        return "\n".join(lines)

    def summary(self) -> str:
        """One line: how far the outputs are off, over how many batches."""
        found = ", ".join("no tensor" if e is None else _error(e) for e in self.outputs)
        batches = f"{self.batches} batch" + ("" if self.batches == 1 else "es")
        return f"outputs over {batches}: {found}"


def _table(table: Sequence[Sequence[str]]) -> list[str]:
    kept = [i for i, name in enumerate(HEADERS) if i < 2 or any(row[i] for row in table[1:])]
    widths = {i: max(len(row[i]) for row in table) for i in kept}
    lines = ["  ".join(_fit(row[i], widths[i], HEADERS[i]) for i in kept).rstrip() for row in table]
    lines.insert(1, "  ".join("-" * widths[i] for i in kept))
    return lines


def _fit(cell: str, width: int, header: str) -> str:
    return cell.rjust(width) if header in RIGHT else cell.ljust(width)


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
