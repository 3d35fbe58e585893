"""How far a prepared model's outputs are from float once it is converted."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pt2q.algorithms.engine import Lane, Walk
from pt2q.algorithms.engine.walk import FLOAT, ROUNDED
from pt2q.algorithms.originals import originals
from pt2q.algorithms.parting import Parting
from pt2q.distributed import ALONE, Ranks
from pt2q.ir.module import QuantGraphModule
from pt2q.ir.storage import is_low
from pt2q.ir.torch_private import pytree

_BELIEVED, _SPREAD = 3, 0.5
"""Batches that the spread of gains was believed from before any was seen, and it in decibels."""
_NOTHING = 1e-30


class ModelError:
    """Compares outputs on the batches to judge by.

    Args:
        model: a prepared model before anything was done to it: what it computes in float is what
            is compared with.
        batches: all; a model that keeps state is run on all of them.
        ranks: the processes that share them out.
    """

    def __init__(
        self, model: QuantGraphModule, batches: Iterable[Any], ranks: Ranks = ALONE
    ) -> None:
        self.batches = batches
        self.ranks = ranks
        self.references = self._run(model, Lane.floating(), FLOAT)

    @property
    def where(self) -> str:
        """What it judges by, in words."""
        return "held-out batches" if self.references.parting.apart else "the only batch"

    def of(self, model: QuantGraphModule) -> tuple[float, ...]:
        """The squared error, over the energy in all of them, of outputs summed.

        Returns:
            For each batch to judge by, or for each row to judge by of a single one.
        """
        found = self._run(model, Lane.rounding(), ROUNDED)
        pairs = zip(self.references.rows, found.rows, strict=True)
        shared = found.walk.shared((found.sums(*pair) for pair in pairs), found.parting.check)
        sums = [one for batch in shared for one in batch]
        columns = list(zip(*sums, strict=True))
        energies = [max(math.fsum(energy for _, energy in c), 1e-30) for c in columns]
        return tuple(
            math.fsum(noise / of_all for (noise, _), of_all in zip(row, energies, strict=True))
            for row in sums
        )

    @torch.no_grad()
    def _run(self, model: QuantGraphModule, lane: Lane, name: str) -> _Outputs:
        with Walk(model, self.batches, [lane], spill=is_low(), ranks=self.ranks) as walk:
            parting = Parting.of(walk)
            if lane.keeps:
                lane.hold(originals(model))
            results = dict(zip(walk.own(), walk.finish()[name], strict=True))
        rows = [
            [parting.to_check(part) for part in _floats(results[batch])]
            for batch in walk.own(parting.check)
        ]
        return _Outputs(walk, parting, rows)


def is_less(before: Sequence[float], after: Sequence[float]) -> bool:
    """Whether an error is less beyond chance.

    Its sum has fallen, and the decibels won have a mean over the batches that is more than twice
    its standard error: a gain that few batches show and the others do not is none on data to come.
    How far gains are spread cannot be told from few batches; the variance is moderated, as if
    `_BELIEVED` more had been seen that are spread by `_SPREAD` (the moderated t of Smyth, Linear
    Models and Empirical Bayes Methods for Assessing Differential Expression, 2004).

    Args:
        before, after: of each batch; what is not finite is more than anything that is.
    """
    if not all(map(math.isfinite, after)):
        return False
    if not all(map(math.isfinite, before)):
        return True
    gains = [_decibels_won(*pair) for pair in zip(before, after, strict=True)]
    mean = statistics.fmean(gains)
    apart = math.fsum((gain - mean) ** 2 for gain in gains)
    variance = (_BELIEVED * _SPREAD**2 + apart) / (_BELIEVED + len(gains) - 1)
    return math.fsum(after) < math.fsum(before) and mean > 2 * math.sqrt(variance / len(gains))


def _decibels_won(before: float, after: float) -> float:
    return 10 * math.log10(max(before, _NOTHING) / max(after, _NOTHING))


@dataclass(frozen=True)
class _Outputs:
    """Each output of a model, for each batch to judge by that this process holds."""

    walk: Walk
    parting: Parting
    rows: list[list[Tensor]]

    def sums(self, exact: list[Tensor], found: list[Tensor]) -> list[list[tuple[float, float]]]:
        """The squared error and the energy of each output, for each row of a batch that judges."""
        parts = self.parting.checked
        parted = all(x.dim() > 0 and x.shape[0] % parts == 0 for x in exact)
        if parts == 1 or not parted:
            return [list(map(_sums, exact, found))]
        rows = [
            list(map(_sums, one.chunk(parts), other.chunk(parts)))
            for one, other in zip(exact, found, strict=True)
        ]
        return [list(outputs) for outputs in zip(*rows, strict=True)]


def _sums(exact: Tensor, found: Tensor) -> tuple[float, float]:
    """The squared error and the energy of an output."""
    return float((exact - found).double().square().sum()), float(exact.double().square().sum())


def _floats(result: Any) -> list[Tensor]:
    leaves = pytree.tree_leaves(result)
    return [x for x in leaves if isinstance(x, Tensor) and x.is_floating_point()]
