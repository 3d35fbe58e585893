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

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from pt2q.algorithms.activation import activation_behind
from pt2q.algorithms.block_rounding import BlockRun, Pieces, draw
from pt2q.algorithms.engine import Walk
from pt2q.algorithms.engine.rounding import Grid
from pt2q.algorithms.joint_rounding import Learned, parameters
from pt2q.algorithms.layers import Layers
from pt2q.algorithms.layerwise import LayerAlgorithm, Proposal, Work
from pt2q.algorithms.matrix import Product
from pt2q.algorithms.report import Report
from pt2q.algorithms.samples import Sample
from pt2q.algorithms.scale_search import best_scales, output_energy
from pt2q.algorithms.second_moments import moments
from pt2q.algorithms.soft_rounding import SoftRounding, exponent, indecision
from pt2q.algorithms.task import Task


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
        others: Adam's rate for the scales and biases of layers that are learned together; 0 leaves
            them.
    """

    name: ClassVar[str] = "adaround"

    steps: int = 1000
    rate: float = 1e-2
    samples: int = 32
    strength: float = 0.01
    warm: float = 0.2
    search_scales: bool = True
    block: int = 1
    others: float = 1e-3

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
        """What a block's layers become."""
        with torch.enable_grad():
            layers = [Learned.of(work, self._grid(work)) for work in works]

            def error(hard: bool) -> Tensor:
                return draw(pieces, {one.work.layer: one.change(hard=hard) for one in layers})

            def indecision(exponent: float) -> Tensor:
                return torch.stack([one.indecision(exponent) for one in layers]).mean()

            self._minimise(parameters(layers, self.rate, self.others), error, indecision)
        return [one.proposal() for one in layers]

    def propose(self, work: Work) -> Iterator[Proposal]:
        """The rounding learned on the calls to fit on."""
        grid = self._grid(work)
        with torch.enable_grad():
            weight = self._learned(work, grid)
        if bool(torch.isfinite(weight).all()):
            yield Proposal(weight, grid)

    def _learned(self, work: Work, grid: Grid) -> Tensor:
        rounding, start = SoftRounding.of(work.weight, grid)
        data, v = _Data(work, self.samples), start.clone().requires_grad_()

        def error(hard: bool) -> Tensor:
            return data.draw(rounding.hard(v) if hard else rounding.soft(v))

        self._minimise([{"params": [v], "lr": self.rate}], error, partial(indecision, v))
        return rounding.hard(v.detach())

    def _minimise(
        self,
        parameters: list[dict[str, Any]],
        error: Callable[[bool], Tensor],
        indecision: Callable[[float], Tensor],
    ) -> None:
        """Learn the roundings of one or several layers, in place.

        Args:
            parameters: what is learned, by rate, as optimizers take it.
            error: on inputs drawn at random, with weights between neighbours, or (True) on one.
            indecision: how far from a neighbour weights are, for an exponent.
        """
        optimizer = torch.optim.Adam(parameters)
        with torch.no_grad():
            strength = self.strength * error(True)
        for step in range(self.steps):
            loss = error(False)
            if step >= self.warm * self.steps:
                sharpness = exponent(step, self.steps, self.warm, 20.0, 2.0)
                loss = loss + strength * indecision(sharpness)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


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
