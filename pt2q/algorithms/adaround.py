"""AdaRound: decide for every weight whether it is rounded up or down, by the layer's output.

Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization". Every weight is
between two neighbours of its grid,

    w~ = s clamp(floor(w / s) + z + h(v), low, high) - s z,
    h(v) = clamp(sigmoid(v) (1.2) - 0.1, 0, 1)                                   (equation 23)

and ``v`` minimises, by Adam (Kingma and Ba 2014),

    mean |f(W x) - f(W~ x')|^2 + strength sum (1 - |2 h(v) - 1|^b)                (equations 21, 24)

with the inputs ``x'`` of the quantized model and the activation ``f`` behind the layer. The
exponent ``b`` falls from 20 to 2, which lets ``h`` move first and then drives it to 0 or 1; in the
first part there is no such term.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pt2q.algorithms.activation import activation_behind
from pt2q.algorithms.block_rounding import BlockRun, Pieces, draw
from pt2q.algorithms.engine import Walk
from pt2q.algorithms.engine.rounding import Grid
from pt2q.algorithms.layers import Layers
from pt2q.algorithms.layerwise import LayerAlgorithm, Proposal, Work
from pt2q.algorithms.matrix import Product
from pt2q.algorithms.report import Report
from pt2q.algorithms.samples import Sample
from pt2q.algorithms.scale_search import best_scales, output_energy
from pt2q.algorithms.second_moments import moments
from pt2q.algorithms.task import Task

STRETCH, SHIFT = 1.2, 0.1


@dataclass(frozen=True)
class SoftRounding:
    """A weight between the neighbours of its grid.

    Args:
        floor: ``floor(w / s) + z``.
        scale, zero_point: of each element.
        low, high: the integers in use.
    """

    floor: Tensor
    scale: Tensor
    zero_point: Tensor
    low: int
    high: int

    @classmethod
    def of(cls, weight: Tensor, grid: Grid) -> tuple[SoftRounding, Tensor]:
        """The neighbours below, and the ``v`` with which the weight is what it is."""
        scale = grid.spread(grid.scale, weight)
        zero_point = grid.spread(grid.zero_point.to(weight.dtype), weight)
        ratio = weight * (1.0 / scale)
        below = ratio.floor()
        share = ((ratio - below + SHIFT) / STRETCH).clamp(1e-4, 1 - 1e-4)
        made = cls(below + zero_point, scale, zero_point, grid.quant_min, grid.quant_max)
        return made, torch.log(share / (1 - share))

    def soft(self, v: Tensor) -> Tensor:
        """``w~``."""
        return self._at(upward(v))

    def hard(self, v: Tensor) -> Tensor:
        """The neighbour that ``v`` is nearer to."""
        return self._at((v >= 0).to(self.floor.dtype))

    def _at(self, share: Tensor) -> Tensor:
        levels = (self.floor + share).clamp(self.low, self.high)
        return (levels - self.zero_point) * self.scale


def upward(v: Tensor) -> Tensor:
    """``h(v)``: how far up a weight is rounded, 0 to 1."""
    return (torch.sigmoid(v) * STRETCH - SHIFT).clamp(0, 1)


def exponent(step: int, steps: int, warm: float, high: float, low: float) -> float:
    """``b`` at a step: after the warm part it falls from ``high`` to ``low`` along a cosine."""
    done = (step - warm * steps) / max(steps * (1 - warm), 1)
    return low + (high - low) * 0.5 * (1 + math.cos(math.pi * min(max(done, 0.0), 1.0)))


@dataclass(frozen=True)
class AdaRound(LayerAlgorithm):
    """Learn the rounding of every weight.

    Args:
        steps: how many steps of Adam a layer gets; the paper's 10,000 win little over this.
        rate: Adam's.
        samples: how many inputs of a layer are drawn for a step.
        strength: of the term that drives roundings to a decision, relative to the layer's error.
        warm: the share of the steps without it.
        search_scales: find the scales by the layer's output first, see `ScaleSearch`.
        block: how many layers are learned together, at most, by the error of what they give.
    """

    name: ClassVar[str] = "adaround"

    steps: int = 1000
    rate: float = 1e-2
    samples: int = 32
    strength: float = 0.01
    warm: float = 0.2
    search_scales: bool = True
    block: int = 1

    def run(self, walk: Walk, layers: Layers, task: Task) -> Report:
        """See `LayerAlgorithm.run`."""
        if self.block == 1:
            return super().run(walk, layers, task)
        return BlockRun(self.name, walk, self.block, self.together, task).report()

    def _grid(self, work: Work) -> Grid:
        if not self.search_scales:
            return work.grid
        energy = output_energy(moments(work.samples), work.use.form, work.grid)
        return best_scales(work.weight, energy, work.grid)

    def together(self, pieces: Pieces, works: Sequence[Work]) -> list[Proposal]:
        """The roundings of a block's layers."""
        grids = [self._grid(work) for work in works]
        made = [SoftRounding.of(w.weight, grid) for w, grid in zip(works, grids, strict=True)]
        layers = [work.layer for work in works]

        def weights(values: Sequence[Tensor], *, hard: bool = False) -> list[Tensor]:
            pairs = zip(made, values, strict=True)
            return [r.hard(v) if hard else r.soft(v) for (r, _), v in pairs]

        def loss(found: Sequence[Tensor]) -> Tensor:
            return draw(pieces, dict(zip(layers, found, strict=True)))

        with torch.enable_grad():
            found = self._minimised([v for _, v in made], weights, loss)
        pairs = zip(weights(found, hard=True), grids, strict=True)
        return [Proposal(weight, grid) for weight, grid in pairs]

    def propose(self, work: Work) -> Iterator[Proposal]:
        """The rounding learned on the calls to fit on."""
        grid = self._grid(work)
        with torch.enable_grad():
            weight = self._learned(work, grid)
        if bool(torch.isfinite(weight).all()):
            yield Proposal(weight, grid)

    def _learned(self, work: Work, grid: Grid) -> Tensor:
        rounding, start = SoftRounding.of(work.weight, grid)
        data = _Data(work, self.samples)

        def weights(values: Sequence[Tensor], *, hard: bool = False) -> list[Tensor]:
            return [rounding.hard(v) if hard else rounding.soft(v) for v in values]

        (found,) = self._minimised([start], weights, lambda weights: data.draw(weights[0]))
        return rounding.hard(found)

    def _minimised(
        self,
        starts: Sequence[Tensor],
        weights: Callable[..., list[Tensor]],
        loss: Callable[[Sequence[Tensor]], Tensor],
    ) -> list[Tensor]:
        """The ``v`` of one or several layers.

        Args:
            starts: where they begin.
            weights: gives the weights for them, soft or hard.
            loss: gives the error for weights, on inputs drawn at random.
        """
        values = [start.clone().requires_grad_() for start in starts]
        optimizer = torch.optim.Adam(values, lr=self.rate)
        with torch.no_grad():
            strength = self.strength * loss(weights(values, hard=True))
        for step in range(self.steps):
            error = loss(weights(values))
            if step >= self.warm * self.steps:
                sharpness = exponent(step, self.steps, self.warm, 20.0, 2.0)
                terms = [1 - (2 * upward(v) - 1).abs().pow(sharpness) for v in values]
                error = error + strength * torch.stack([term.mean() for term in terms]).mean()
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
        return [v.detach() for v in values]


class _Data:
    """The calls of a layer to draw from.

    Args:
        work: the layer.
        samples: how many inputs are drawn at once; of a product 16 rows stand for one.
    """

    def __init__(self, work: Work, samples: int) -> None:
        self.use = work.use
        self.bias = work.rounded_bias
        self.activation = activation_behind(work.use)
        pairs = work.samples.fitted(lambda sample: _rows(sample, work))
        alike: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
        for x, y in pairs:
            alike.setdefault(x.shape[1:], []).append((x, self.activation(y)))
        self.groups = [tuple(map(torch.cat, zip(*group, strict=True))) for group in alike.values()]
        self.sizes = torch.tensor([float(len(x)) for x, _ in self.groups])
        self.count = samples * (16 if pairs[0][0].dim() == 2 else 1)

    def draw(self, weight: Tensor) -> Tensor:
        """The mean squared error on some inputs drawn at random, of one size."""
        group = int(torch.multinomial(self.sizes, 1)) if len(self.groups) > 1 else 0
        inputs, outputs = self.groups[group]
        chosen = torch.randperm(len(inputs))[: self.count]
        y = self.activation(self.use.run(inputs[chosen], weight, self.bias))
        return (y - outputs[chosen]).square().mean()


def _rows(sample: Sample, work: Work) -> tuple[Tensor, Tensor]:
    """The quantized inputs and float outputs of one call, one sample a row."""
    y = sample.use.run(sample.floating, work.weight, work.bias)
    if isinstance(work.use.form, Product):
        return sample.rounded.reshape(-1, sample.rounded.shape[-1]), y.reshape(-1, y.shape[-1])
    batched = sample.rounded.dim() == work.weight.dim()
    return (sample.rounded, y) if batched else (sample.rounded[None], y[None])
