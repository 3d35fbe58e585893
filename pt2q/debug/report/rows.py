"""The rows of the page's table: what each operator became, and what that cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from pt2q.debug.comparison.comparison import Comparison
from pt2q.debug.comparison.row import ComparisonRow
from pt2q.debug.error import Error
from pt2q.debug.sensitivities.result import Sensitivity
from pt2q.quantizers import Report


@dataclass(frozen=True)
class PageRow:
    """One operator.

    Args:
        node, operator, module: as in the float model.
        how: how it is quantized, or why not.
        quantized: whether it is; None where the quantizer has said nothing.
        local, total, alone, weight: signal to noise ratios in dB; None where there is none.
        clipped, levels: shares.
        scale: of its values, the largest.
        tensors: names of the tensors whose histograms belong to it.
    """

    node: str
    operator: str
    module: str
    how: str
    quantized: bool | None
    local: float | None
    total: float | None
    alone: float | None
    weight: float | None
    clipped: float | None
    levels: float | None
    scale: float | None
    tensors: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


EXACT = 200.0
"""What stands for a value that nothing differs in, in dB."""


def page_rows(
    comparison: Comparison,
    decisions: Report,
    sensitivity: Sensitivity,
    weights: Mapping[str, Sequence[str]],
) -> list[PageRow]:
    """A row for each value that both models have.

    Args:
        comparison: of float with converted.
        decisions: the quantizer's.
        sensitivity: of the prepared model.
        weights: names of the quantized weights by name of the operator that reads them.
    """
    decided = {row.node: row for row in decisions}
    alone: dict[str, float] = {}
    for felt in sensitivity.rows:
        for node in felt.nodes:
            alone[node] = min(alone.get(node, EXACT), felt.alone)
    found = []
    for row in comparison.rows:
        names = (*row.includes, row.node)
        said = next((decided[n] for n in reversed(names) if n in decided), None)
        tensors = (*names, *(w for n in names for w in weights.get(n, ())))
        least = min((alone[n] for n in tensors if n in alone), default=None)
        how = "" if said is None else said.how
        quantized = None if said is None else said.quantized
        found.append(_row(row, how, quantized, least, tensors))
    return found


def _row(
    row: ComparisonRow,
    how: str,
    quantized: bool | None,
    alone: float | None,
    tensors: tuple[str, ...],
) -> PageRow:
    rounding = max(row.roundings, key=lambda r: r.clipped, default=None)
    worst = min(row.weights, key=lambda w: w.error.rank, default=None)
    return PageRow(
        node=" + ".join((*row.includes, row.node)),
        operator=row.operator,
        module=row.module,
        how=how,
        quantized=quantized,
        local=_decibels(row.local),
        total=_decibels(row.total),
        alone=_bounded(alone),
        weight=None if worst is None else _decibels(worst.error),
        clipped=None if rounding is None else rounding.clipped,
        levels=None if rounding is None else rounding.levels,
        scale=None if rounding is None else rounding.scale[1],
        tensors=tensors,
    )


def _decibels(error: Error | None) -> float | None:
    return None if error is None else _bounded(EXACT if error.is_exact else error.rank)


def _bounded(value: float | None) -> float | None:
    return None if value is None else round(min(max(value, -EXACT), EXACT), 2)
