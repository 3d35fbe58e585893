"""How far a prepared model's outputs are from float once it is converted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from pt2q.algorithms.engine import Lane, Walk
from pt2q.algorithms.engine.walk import FLOAT, ROUNDED
from pt2q.algorithms.originals import originals
from pt2q.algorithms.parting import Parting
from pt2q.ir.module import QuantGraphModule
from pt2q.ir.torch_private import pytree


class ModelError:
    """Compares outputs on the batches to judge by.

    Args:
        model: a prepared model before anything was done to it: what it computes in float is what
            is compared with.
        batches: all; a model that keeps state is run on all of them.
    """

    def __init__(self, model: QuantGraphModule, batches: Iterable[Any]) -> None:
        self.batches = batches
        self.references = self._run(model, Lane.floating(), FLOAT)

    def of(self, model: QuantGraphModule) -> float:
        """The squared error over the energy of each output, summed."""
        found = self._run(model, Lane.rounding(), ROUNDED)
        total = 0.0
        for one, other in zip(self.references, found, strict=True):
            noise = (one - other).double().square().sum()
            total += float(noise / one.double().square().sum().clamp(min=1e-30))
        return total

    @torch.no_grad()
    def _run(self, model: QuantGraphModule, lane: Lane, name: str) -> list[Tensor]:
        """Each output of the model, over all batches to judge by, flat."""
        with Walk(model, self.batches, [lane]) as walk:
            parting = Parting.of(walk)
            if lane.keeps:
                lane.hold(originals(model))
            results = walk.finish()[name]
        columns = zip(*(_floats(results[batch]) for batch in parting.check), strict=True)
        return [
            torch.cat([parting.to_check(part).reshape(-1) for part in column]) for column in columns
        ]


def _floats(result: Any) -> list[Tensor]:
    leaves = pytree.tree_leaves(result)
    return [x for x in leaves if isinstance(x, Tensor) and x.is_floating_point()]
