"""What `fusion_report` gives: which quantized operators run as int8 kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from pt2q.quantizers.toolkit.reasons import Reason


@dataclass(frozen=True)
class FusionRow:
    """What became of one quantized operator.

    Args:
        node: its name in the converted graph.
        module: the qualified name of its module, "" for the root.
        operator: its target.
        computes: it is a convolution or a matrix product, which gains from an int8 kernel; the
            others are elementwise or move values, and Inductor generates loops for them.
        kernel: the kernel that runs it, or "" where a float kernel does.
        detail: what is fused with it, or the text of the reason.
        reason: why it is not an int8 kernel; None where one runs it.
    """

    node: str
    module: str
    operator: str
    computes: bool
    kernel: str
    detail: str
    reason: Reason | None = None


@dataclass(frozen=True)
class FusionReport:
    """The quantized operators of a converted model, in the order of its graph."""

    rows: tuple[FusionRow, ...]

    @property
    def fused(self) -> tuple[FusionRow, ...]:
        """Convolutions and matrix products that run as int8 kernels."""
        return tuple(row for row in self.rows if row.computes and row.kernel)

    @property
    def not_fused(self) -> tuple[FusionRow, ...]:
        """Quantized convolutions and matrix products that compute in float all the same."""
        return tuple(row for row in self.rows if row.computes and not row.kernel)

    def __getitem__(self, node: str) -> FusionRow:
        """The row of a node of the converted graph.

        Raises:
            KeyError: the node is not quantized.
        """
        for row in self.rows:
            if row.node == node:
                return row
        raise KeyError(f"no quantized operator {node!r} among {len(self.rows)}")

    def __iter__(self) -> Iterator[FusionRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        """A count, then a line for each operator left in float and each kind of fusion."""
        total = len(self.fused) + len(self.not_fused)
        lines = [f"{len(self.fused)} of {total} convolutions and matrix products are int8 kernels"]
        kinds = Counter(f"{row.kernel} {row.detail}".strip() for row in self.fused)
        lines += [f"  {count:4d} x {kind}" for kind, count in kinds.most_common()]
        lines += [f"  float: {row.node} ({row.operator}): {row.detail}" for row in self.not_fused]
        return "\n".join(lines)
