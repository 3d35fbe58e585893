"""GPTQ: round a weight column by column, and let the columns to come make up for the error.

Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", algorithm 1. With ``H = sum x x^T`` over the layer's inputs and ``U`` the upper
Cholesky factor of ``(H + damping mean(diag H) I)^-1``, column ``i`` is rounded and

    e = (w_i - round(w_i)) / U_ii,    w_j -= e U_ij    for all j > i,

which is the best that the columns not yet rounded can do. Columns go in blocks, so that all that
lies behind a block is changed in one product. Sweeps of coordinate descent over the rounded columns
lower the error further (`sweep`).

Inputs are those that the quantized layers before give. That they differ from the float ones can be
made up for before anything is rounded: ``sum |f W^T - x V^T|^2`` is smallest at

    W* = W + W (sum (f - x) x^T) (H + damping mean(diag H) I)^-1

(Li et al. 2025, "GPTAQ: Efficient Finetuning-Free Quantization for Asymmetric Calibration", section
3, derives the same target), and GPTQ for ``W*`` minimises what is left. ``W*`` damps what is noise
to it, in the same way at every position: where outputs are averaged over positions, that stays and
errors at random go, so a layer's own error does not say which is better. The error of the whole
model's outputs does, see `GPTQ.both_ways`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from pt2q.algorithms.alternatives import the_better
from pt2q.algorithms.engine.rounding import Grid
from pt2q.algorithms.layerwise import Declined, LayerAlgorithm, Proposal, Proposed, Work
from pt2q.algorithms.matrix import MatrixForm
from pt2q.algorithms.report import Report
from pt2q.algorithms.scale_search import best_scales, output_energy
from pt2q.algorithms.second_moments import Moments, moments
from pt2q.algorithms.task import Task


@dataclass(frozen=True)
class RowGrid:
    """A grid with a scale and zero point for each element of ``[groups, rows, k]``."""

    scale: Tensor
    zero_point: Tensor
    low: int
    high: int

    @classmethod
    def of(cls, grid: Grid, weight: Tensor, form: MatrixForm) -> RowGrid:
        """The grid of a weight, seen as rows."""
        scale = form.rows(grid.spread(grid.scale, weight))
        zero_point = form.rows(grid.spread(grid.zero_point.to(torch.float32), weight))
        return cls(scale, zero_point, grid.quant_min, grid.quant_max)

    def ordered(self, order: Tensor) -> RowGrid:
        """With the columns in another order."""
        taken = [columns(x, order) for x in (self.scale, self.zero_point)]
        return replace(self, scale=taken[0], zero_point=taken[1])

    def round(self, w: Tensor, i: int) -> Tensor:
        """Column ``i``, ``[groups, rows]``, on the grid."""
        scale, zero_point = self.scale[..., i], self.zero_point[..., i]
        levels = (w * (1.0 / scale)).round_().add_(zero_point).clamp_(self.low, self.high)
        return levels.sub_(zero_point).mul_(scale)


def columns(x: Tensor, order: Tensor) -> Tensor:
    """Columns of ``[groups, rows, k]`` in an order of each group's, ``[groups, k]``."""
    return x.gather(2, order[:, None].expand(x.shape))


def inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """``U`` with ``U^T U = (H + damping mean(diag H) I)^-1``, upper triangular, in float64.

    Args:
        hessian: ``[groups, k, k]``; inputs that are always zero have zero rows.
        damping: doubled, a few times, where the sum is still not positive definite.
    """
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    dead = torch.diag_embed((diagonal == 0).double() * mean)
    for _ in range(20):
        damped = hessian + dead + torch.diag_embed((damping * mean).expand(diagonal.shape))
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not bool(failed.any()):
            inverse = torch.cholesky_inverse(lower)
            found = torch.linalg.cholesky_ex(inverse, upper=True)
            if not bool(found.info.any()):
                upper: Tensor = found.L
                return upper
        damping = max(2 * damping, 1e-6)
    raise Declined("the second moments of its inputs are not finite")


def round_columns(w: Tensor, factor: Tensor, grid: RowGrid, block: int) -> Tensor:
    """The weight rounded column by column.

    Args:
        w: ``[groups, rows, k]``; it is used up.
        factor: see `inverse_factor`.
        grid: what to round to.
        block: how many columns are rounded before those behind them are changed.
    """
    result = torch.empty_like(w)
    factor = factor.float()
    for start in range(0, w.shape[2], block):
        stop = min(start + block, w.shape[2])
        errors = torch.empty_like(w[:, :, start:stop])
        part = w[:, :, start:stop].clone()
        inner = factor[:, start:stop, start:stop]
        for i in range(stop - start):
            result[..., start + i] = grid.round(part[..., i], start + i)
            errors[..., i] = (part[..., i] - result[..., start + i]) / inner[:, None, i, i]
            part[..., i + 1 :] -= errors[..., i, None] * inner[:, None, i, i + 1 :]
        w[:, :, stop:] -= errors @ factor[:, start:stop, stop:]
    return result


def sweep(w: Tensor, found: Tensor, hessian: Tensor, grid: RowGrid, block: int) -> Tensor:
    """Round every column anew, each as is best with all others as they are.

    With ``g = (w - v) H`` column ``i`` is best at ``v_i + g_i / H_ii``, and nearest on the grid to
    that (Behdin et al. 2023, "QuantEase: Optimization-based Quantization for Language Models",
    equation 8): the error never grows.

    Args:
        w: the weight, ``[groups, rows, k]``.
        found: what it is rounded to; it is used up.
        hessian: ``H``, damped, in float32.
        grid: what to round to.
        block: how many columns change before ``g`` is brought up to date.
    """
    gradient = (w - found) @ hessian
    scale = hessian.diagonal(dim1=1, dim2=2)
    for start in range(0, w.shape[2], block):
        stop = min(start + block, w.shape[2])
        here, before = gradient[:, :, start:stop].clone(), found[:, :, start:stop].clone()
        inner = hessian[:, start:stop, start:stop]
        for i in range(stop - start):
            at = start + i
            wanted = found[..., at] + here[..., i] / scale[:, None, at]
            found[..., at] = grid.round(wanted, at)
            here -= (found[..., at] - before[..., i])[..., None] * inner[:, None, i]
        gradient -= (found[:, :, start:stop] - before) @ hessian[:, start:stop]
    return found


def best_target(w: Tensor, seen: Moments, damping: float) -> Tensor:
    """``W*``: what the quantized inputs would have to be multiplied by; see the file's text."""
    diagonal = seen.within.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    damped = seen.within + torch.diag_embed((damping * mean).expand(diagonal.shape))
    lower, failed = torch.linalg.cholesky_ex(damped)
    if bool(failed.any()):
        return w
    change = (w.double() @ seen.across).transpose(1, 2)
    return w + torch.cholesky_solve(change, lower).transpose(1, 2).float()


@dataclass(frozen=True)
class GPTQ(LayerAlgorithm):
    """Round weights so that the errors of each make up for each other.

    Args:
        damping: what is added to the diagonal of the second moments, as a share of its mean.
        block: how many columns are rounded before those behind them are changed.
        by_activation: begin with the columns whose inputs are largest.
        search_scales: also try scales found by the layer's output, see `ScaleSearch`.
        sweeps: how often the rounded columns are gone through again: lowers the error on the inputs
            seen, and on others where these are many more than a row has elements.
        aligned: also try the weight that makes up for errors of the layers before; needs as many.
        both_ways: where ``aligned`` is not asked for, go through the model with it as well, with
            two sweeps, and keep it if the outputs of the model gain by that on held-out batches.
    """

    name: ClassVar[str] = "gptq"

    damping: float = 0.03
    block: int = 128
    by_activation: bool = True
    search_scales: bool = True
    sweeps: int = 0
    aligned: bool = False
    both_ways: bool = True

    def improve(self, task: Task) -> Report:
        """See `GraphAlgorithm.improve`."""
        if self.aligned or not self.both_ways:
            return super().improve(task)
        as_asked = replace(self, both_ways=False)
        made_up = replace(as_asked, aligned=True, sweeps=max(self.sweeps, 2))
        return the_better(task, as_asked, made_up)

    def propose(self, work: Work) -> Iterator[Proposed]:
        """For the float weight, and for what makes up for quantized inputs, on both grids."""
        form, weight = work.use.form, work.weight
        seen = moments(work.samples)
        rows = form.rows(weight).float()
        targets = [(rows, "")]
        if self.aligned and bool(seen.across.any()):
            targets.append((best_target(rows, seen, self.damping), "made up for inputs"))
        for target, words in targets:
            for grid in self._grids(work, seen, target):
                yield partial(self._proposal, work, seen, target, grid, words)

    def _proposal(
        self, work: Work, seen: Moments, target: Tensor, grid: Grid, words: str
    ) -> Proposal | None:
        form, weight = work.use.form, work.weight
        found = self._rounded(target, seen.within, RowGrid.of(grid, weight, form))
        if not bool(torch.isfinite(found).all()):
            return None
        return Proposal(form.weight(found, weight), grid, words=words)

    def _grids(self, work: Work, seen: Moments, rows: Tensor) -> list[Grid]:
        if not self.search_scales:
            return [work.grid]
        form = work.use.form
        energy = output_energy(seen, form, work.grid)
        return [work.grid, best_scales(form.weight(rows, work.weight), energy, work.grid)]

    def _rounded(self, rows: Tensor, hessian: Tensor, grid: RowGrid) -> Tensor:
        order = hessian.diagonal(dim1=1, dim2=2).argsort(dim=-1, descending=True, stable=True)
        taken = hessian.gather(1, order[:, :, None].expand(hessian.shape))
        taken = taken.gather(2, order[:, None].expand(hessian.shape))
        factor = inverse_factor(taken, self.damping)
        grid, rows = grid.ordered(order), columns(rows, order)
        found = round_columns(rows.clone(), factor, grid, self.block)
        diagonal = taken.diagonal(dim1=1, dim2=2)
        more = self.damping * diagonal.mean(-1, keepdim=True) + (diagonal == 0)
        damped = (taken + torch.diag_embed(more.expand(diagonal.shape))).float()
        for _ in range(self.sweeps):
            found = sweep(rows, found, damped, grid, self.block)
        return columns(found, order.argsort(dim=-1))
