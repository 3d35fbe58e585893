"""How far a prepared model's outputs are from float once it is converted."""

from __future__ import annotations

import math
from collections.abc import Iterable
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

    def of(self, model: QuantGraphModule) -> float:
        """The squared error over the energy of each output, summed."""
        found = self._run(model, Lane.rounding(), ROUNDED)
        pairs = zip(self.references.rows, found.rows, strict=True)
        sums = found.walk.shared((list(map(_sums, *pair)) for pair in pairs), found.batches)
        total = 0.0
        for column in zip(*sums, strict=True):
            noise, energy = map(math.fsum, zip(*column, strict=True))
            total += noise / max(energy, 1e-30)
        return total

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
        return _Outputs(walk, parting.check, rows)


@dataclass(frozen=True)
class _Outputs:
    """Each output of a model, for each batch to judge by that this process holds."""

    walk: Walk
    batches: tuple[int, ...]
    rows: list[list[Tensor]]


def _sums(exact: Tensor, found: Tensor) -> tuple[float, float]:
    """The squared error and the energy of an output."""
    return float((exact - found).double().square().sum()), float(exact.double().square().sum())


def _floats(result: Any) -> list[Tensor]:
    leaves = pytree.tree_leaves(result)
    return [x for x in leaves if isinstance(x, Tensor) and x.is_floating_point()]
