"""What a streaming histogram keeps on the host: summaries not counted yet, and how much was seen.

Plain objects beside the module, where access is cheap.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from pt2q.numerics.sampling import Summary


@dataclass(slots=True)
class Waiting:
    """Summaries not counted yet, of one weight."""

    weight: int = 1
    size: int = 0
    largest: Tensor | float = 0.0
    values: list[Tensor] = field(default_factory=list)
    minima: list[Tensor] = field(default_factory=list)
    maxima: list[Tensor] = field(default_factory=list)

    def take(self, summary: Summary, largest: Tensor | float) -> None:
        """Add a summary; ``largest`` is a number on the host, or the largest so far of all."""
        if summary.minima is None or summary.maxima is None:
            # The caller may write over a tensor that was taken whole.
            self.values.append(summary.values.clone())
        else:
            self.values.append(summary.values)
            self.minima.append(summary.minima)
            self.maxima.append(summary.maxima)
        if isinstance(largest, Tensor) or isinstance(self.largest, Tensor):
            self.largest = largest
        else:
            self.largest = max(self.largest, largest)
        self.size += summary.values.shape[0]


@dataclass(slots=True)
class Totals:
    """How much was seen: whole numbers."""

    calls: int = 0
    elements: int = 0
    samples: int = 0
    blocks: int = 0
    whole: int = 0

    def take(self, summary: Summary) -> None:
        """Count a summary in."""
        size = summary.values.shape[0]
        self.calls += 1
        if summary.minima is None:
            self.whole += size
            return
        self.elements += size * summary.weight
        self.samples += size
        self.blocks += summary.minima.shape[0]
