"""The decision on one node."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from pt2q.quantizers.toolkit.reasons import Reason


@dataclass(frozen=True, kw_only=True)
class Row:
    """The decision on one node.

    Args:
        node: its name in the graph.
        module: the qualified name of the module it was traced in, "" for the root.
        operator: its target, such as ``aten.linear.default``.
        words: how it is quantized, such as ``int8 static, weight int8 per-channel``.
        reason: why it stays in float; None where it is quantized.
        rule: the row of the backend's table that it was quantized by; "" where there is none.
        by: the quantizer that annotated it, where there are several; else "".
    """

    node: str
    module: str
    operator: str
    words: str = ""
    reason: Reason | None = None
    rule: str = ""
    by: str = ""

    @property
    def quantized(self) -> bool:
        """Whether the quantizer annotated it."""
        return self.reason is None

    @property
    def how(self) -> str:
        """How it is quantized, or ``float: `` and the reason."""
        return self.words if self.reason is None else f"float: {self.reason}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "quantized": self.quantized}


def by_reason(rows: Iterable[Row]) -> dict[Reason, tuple[Row, ...]]:
    """The rows that stay in float, by their reason, the most frequent reason first.

    Args:
        rows: decisions of any kind.
    """
    found: dict[Reason, list[Row]] = {}
    for row in rows:
        if row.reason is not None:
            found.setdefault(row.reason, []).append(row)
    ordered = sorted(found.items(), key=lambda item: -len(item[1]))
    return {reason: tuple(alike) for reason, alike in ordered}
