"""How far results are from the float model's: the signal to noise ratio, or a function's word."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from pt2q.debug.error_sums import ErrorSums, decibels
from pt2q.errors import ComparisonError
from pt2q.ir.torch_private import pytree

Metric = Callable[[Sequence[Any], Sequence[int]], float]
"""Given the model's results, one for each batch, and the positions of these batches among all,
returns how good they are: larger is better."""

Tally = tuple[tuple[float, float], ...]
"""Sums over batches, to which those over others can be added."""


def added(one: Tally, other: Tally) -> Tally:
    """The sums over the batches of both."""
    if not one or not other:
        return one or other
    return tuple((a + c, b + d) for (a, b), (c, d) in zip(one, other, strict=True))


class Judge(Protocol):
    """Says how good results are."""

    @property
    def name(self) -> str:
        """What it measures, and in which unit."""
        ...

    def tally(self, results: Sequence[Any], batches: Sequence[int]) -> Tally:
        """Take in results of some batches.

        Args:
            results: what the model gave, batch by batch.
            batches: their positions among all.
        """
        ...

    def value(self, tally: Tally) -> float:
        """The figure that sums stand for; larger is better."""
        ...


@dataclass(frozen=True)
class SqnrJudge:
    """The signal to noise ratio of the outputs against the float model's, in dB.

    With several outputs the noise of each counts in shares of its own signal, and the ratio is that
    of their mean. Outputs that are no floating-point tensors count only where there is no other.

    Args:
        references: the float model's results of all batches.
    """

    references: Sequence[Any]
    name: str = "SQNR in dB"

    def tally(self, results: Sequence[Any], batches: Sequence[int]) -> Tally:
        """See `Judge.tally`.

        Raises:
            ComparisonError: the model gives no tensor.
        """
        found: Tally = ()
        for result, batch in zip(results, batches, strict=True):
            pairs = zip(_tensors(self.references[batch]), _tensors(result), strict=True)
            found = added(found, tuple(_sums(one, other) for one, other in pairs))
        if not found:
            raise ComparisonError("the model gives no tensor, so there is no output to compare")
        return found

    def value(self, tally: Tally) -> float:
        """See `Judge.value`: -infinite where NaN or infinity came up in one of the two only."""
        shares = [noise / signal if signal > 0 else noise for signal, noise in tally]
        share = sum(shares) / len(shares)
        return -math.inf if not math.isfinite(share) else decibels(1.0, share)


def _tensors(result: Any) -> list[Tensor]:
    found = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
    return [t for t in found if t.is_floating_point() or t.is_complex()] or found


def _sums(reference: Tensor, value: Tensor) -> tuple[float, float]:
    sums = ErrorSums()
    sums.add(reference, value)
    return sums.signal, math.inf if sums.nonfinite else sums.noise


@dataclass(frozen=True)
class MetricJudge:
    """What a function says of the results.

    Args:
        metric: the function.
        name: what it measures.
    """

    metric: Metric
    name: str = "metric"

    def tally(self, results: Sequence[Any], batches: Sequence[int]) -> Tally:
        """See `Judge.tally`."""
        return ((float(self.metric(results, batches)) * len(batches), float(len(batches))),)

    def value(self, tally: Tally) -> float:
        """See `Judge.value`: the mean over batches."""
        ((total, count),) = tally
        return total / count
