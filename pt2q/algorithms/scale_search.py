"""Ranges by what they do to the output, instead of by the largest value.

A smaller scale rounds most weights more finely and clips the largest. For every scale of a grid
the factor ``r`` is sought, between `ScaleSearch.least` and 1, that makes smallest the error of the
output which the elements sharing it cause alone:

    sum over rows of d H d^T,    d = w - round_r(w),    H = sum x x^T

with ``H`` cut down to the elements of a group where groups of a row have scales of their own (the
quadratic form of Frantar et al. 2022, "GPTQ", equation 1; searching a factor of the range by the
output's error is done in Lin et al. 2023, "AWQ", appendix).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pt2q.algorithms.engine.rounding import Grid
from pt2q.algorithms.engine.runner import seeded
from pt2q.algorithms.engine.walk import FLOAT
from pt2q.algorithms.layers import find_layers
from pt2q.algorithms.layerwise import LayerAlgorithm, Proposal, Work
from pt2q.algorithms.matrix import MatrixForm
from pt2q.algorithms.originals import originals
from pt2q.algorithms.range_search import RangeRun
from pt2q.algorithms.report import Report
from pt2q.algorithms.second_moments import Moments, moments
from pt2q.algorithms.task import Task

Energy = Callable[[Tensor], Tensor]
"""What each element of an error costs: a tensor of the error's shape."""


def output_energy(seen: Moments, form: MatrixForm, grid: Grid) -> Energy:
    """The error of the output that an error of the weight causes, told apart by its elements.

    Args:
        seen: the inputs' second moments.
        form: how the weight is seen as rows.
        grid: elements with other scales are taken to be exact.
    """
    hessian = seen.within.float()
    size = grid.group_size
    if size is not None:
        place = torch.arange(hessian.shape[-1]) // size
        hessian = hessian * (place[:, None] == place)

    def energy(error: Tensor) -> Tensor:
        rows = form.rows(error)
        return form.weight((rows.float() @ hessian) * rows, error)

    return energy


@torch.no_grad()
def best_scales(
    weight: Tensor, energy: Energy, grid: Grid, steps: int = 32, least: float = 0.3
) -> Grid:
    """The grid with the least error, scale by scale.

    Args:
        weight: on the grid's axes.
        energy: what an error of it costs.
        grid: what is shrunk; its zero points stay.
        steps: how many factors are tried, evenly spaced.
        least: the smallest of them.
    """
    best, lowest = grid.scale, grid.total(energy(weight - grid.round(weight)))
    for factor in torch.linspace(1.0, least, steps)[1:].tolist():
        tried = grid.scaled(factor)
        error = tried.total(energy(weight - tried.round(weight)))
        better = error < lowest
        lowest = torch.where(better, error, lowest)
        best = torch.where(better.reshape(best.shape), tried.scale, best)
    return grid.with_scale(best)


@dataclass(frozen=True)
class ScaleSearch(LayerAlgorithm):
    """Find scales of weights and ranges of activations by the error of what is computed with them.

    Args:
        steps: how many scales are tried for each weight.
        least: the smallest, as a share of what covers the largest value.
        weights: find those of weights.
        activations: then find the ranges of values that calibration has found, by the error of what
            is computed from them, see `pt2q.algorithms.range_search`.
    """

    name: ClassVar[str] = "scale_search"

    steps: int = 32
    least: float = 0.3
    weights: bool = True
    activations: bool = True

    def improve(self, task: Task) -> Report:
        """See `GraphAlgorithm.improve`."""
        report = super().improve(task) if self.weights else Report()
        if not self.activations:
            return report
        with seeded(task.seed), task.walk() as walk:
            walk.lanes[FLOAT].hold(originals(task.model))
            first = len(find_layers(walk.program).found) if self.weights else 0
            return report + RangeRun(self.name, walk, task).report(first)

    def propose(self, work: Work) -> Iterator[Proposal]:
        """Scales by the inputs' second moments, and by none."""
        form, weight = work.use.form, work.weight
        energy = output_energy(moments(work.samples), form, work.grid)
        for words, cost in (("by the output", energy), ("by the weight", torch.square)):
            found = best_scales(weight, cost, work.grid, self.steps, self.least)
            yield Proposal(weight, found, words=words)
