"""SmoothQuant: move what is hard to quantize from activations into weights.

Xiao et al. 2022, "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
Models", equation 4. A few channels much larger than the others leave these few integers. Dividing
every channel of the input of a layer by a factor, and multiplying the weight's by the same, keeps
the function:

    y = (x / s) (s w),    s_j = max |x_j|^a / max |w_j|^(1 - a)

The strength ``a`` is found layer by layer, by the error of the output. So is, beside it, a limit
``t`` for the largest magnitude: where a few channels are far larger than all others, as behind the
activation of a feed-forward block, it is enough to bring these down to it (Wei et al. 2023,
"Outlier Suppression+: Accurate quantization of large language models by equivalent and effective
shifting and scaling", section 4.2):

    s_j = max(1, max |x_j| / (t median_i max |x_i|))

The division goes into what
makes the value: a norm's affine, a linear layer or convolution, seen through operators that hand
channels on (attention from values to outputs among them). Where others read the value too, a
multiplication is written before the layers, if they gain enough by it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pt2q.algorithms.engine import Lane, Program, Walk
from pt2q.algorithms.engine.runner import Values
from pt2q.algorithms.engine.walk import FLOAT
from pt2q.algorithms.insertion import Insertion, insert, undo
from pt2q.algorithms.layers import Layers, Passed, find_layers
from pt2q.algorithms.report import Report
from pt2q.algorithms.site_run import SiteRun
from pt2q.algorithms.sites import in_order, nearest_sites
from pt2q.algorithms.strength_search import (
    Families,
    StrengthSearch,
    input_axis,
    is_quantized,
    over_inputs,
    readers_of,
)
from pt2q.algorithms.task import GraphAlgorithm, Task
from pt2q.algorithms.transfer import Site, Source
from pt2q.ir.graph import get_constant
from pt2q.ir.module import QuantGraphModule


@dataclass(frozen=True)
class SmoothQuant(GraphAlgorithm):
    """Even out the channels of quantized inputs.

    Args:
        strengths: those to choose from, layer by layer.
        limits: the same; with none, strengths alone are tried.
        insert: write a multiplication where nothing before a layer can take the factor.
        insert_from: how many decibels it has to bring.
    """

    name: ClassVar[str] = "smooth_quant"

    strengths: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    limits: tuple[float, ...] = (0.7, 1.0, 1.5, 2.0, 3.0)
    insert: bool = True
    insert_from: float = 1.0

    def improve(self, task: Task) -> Report:
        """See `GraphAlgorithm.improve`."""
        insertions = self._places(task.model) if self.insert else []
        try:
            with task.walk([Lane.floating()]) as walk:
                return self._run(walk, insertions, task)
        finally:
            for insertion in insertions:
                if bool((get_constant(task.model, insertion.constant) == 1).all()):
                    undo(task.model, insertion)

    def _run(self, walk: Walk, insertions: Sequence[Insertion], task: Task) -> Report:
        layers = find_layers(walk.program)
        places = [_source(walk, insertion) for insertion in insertions]
        found = nearest_sites(walk.program, layers, places)
        run = SiteRun(self.name, walk, task)
        run.passed = [*layers.passed, *_passed_over(layers, found)]
        numbers = {"strength": self.strengths, "limit": self.limits}
        inserted = frozenset(insertion.product for insertion in insertions)
        search = StrengthSearch(run, numbers, families, inserted)
        cost = 1 - 10 ** (-self.insert_from / 10)
        return run.run(
            in_order(walk.program, found),
            run.scaled(search, lambda words: words.startswith("limit")),
            lambda site: cost if site.source.node in inserted else 0.0,
        )

    @staticmethod
    def _places(model: QuantGraphModule) -> list[Insertion]:
        """Multiplications before the layers that no source reaches."""
        program = Program(model)
        layers = find_layers(program)
        reached = nearest_sites(program, layers)
        uses = [
            use
            for layer in layers.found
            for use in layer.uses
            if layer.name not in reached and use.owner is model and is_quantized(use)
        ]
        return insert(model, uses, {use: input_axis(use) for use in uses})


def _source(walk: Walk, insertion: Insertion) -> Source:
    return Source(insertion.product, insertion.axis, (((walk.model, insertion.constant),),))


def _passed_over(layers: Layers, found: dict[str, Site]) -> Iterator[Passed]:
    for layer in layers.found:
        if not any(is_quantized(use) for use in layer.uses):
            found.pop(layer.name, None)
            yield Passed(layer.name, "its input is not quantized")
        elif layer.name not in found:
            yield Passed(layer.name, "nothing before it can take a factor")


def families(run: SiteRun, site: Site) -> Families:
    """``s`` for a strength and for a limit, from the inputs to fit on.

    Args:
        run: stands before the site.
        site: whose channels they are.
    """
    of_inputs, of_weights = (torch.zeros(site.reach.count) for _ in range(2))
    readers = readers_of(site)
    wanted = list(dict.fromkeys(reader.use.x for reader in readers))

    def sizes(row: Values) -> list[Tensor]:
        inputs = [over_inputs(r.use, run.parting.to_fit(row[r.use.x])) for r in readers]
        return [x.abs().amax(0) for x in inputs]

    found = run.walk.replay(wanted, run.walk.lanes[FLOAT], batches=run.parting.fit)
    for row in run.walk.shared(map(sizes, found), run.parting.fit):
        for reader, largest in zip(readers, row, strict=True):
            _raise_to(of_inputs, reader.labels, largest)
    for reader in readers:
        rows = reader.layer.form.rows(reader.layer.weight).abs().amax(1)
        channels = rows.reshape(reader.labels.shape[0], -1).amax(1)
        _raise_to(of_weights, reader.labels, channels)
    free = site.reach.free
    return {
        "strength": lambda strength: factor_of(of_inputs, of_weights, strength, free),
        "limit": lambda limit: limited(of_inputs, limit, free),
    }


def factor_of(inputs: Tensor, weights: Tensor, strength: float, free: Tensor) -> Tensor:
    """``max |x_j|^a / max |w_j|^(1 - a)``, its geometric mean 1; 1 where a channel is not free.

    Args:
        inputs, weights: the largest magnitude of each channel.
        strength: ``a``.
        free: whether each channel may be scaled.
    """
    usable = free & (inputs > 0) & (weights > 0)
    if not bool(usable.any()):
        return torch.ones_like(inputs)
    logs = (
        strength * inputs[usable].double().log() - (1 - strength) * weights[usable].double().log()
    )
    factor = torch.ones_like(inputs)
    factor[usable] = (logs - logs.mean()).exp().clamp(1e-4, 1e4).float()
    return factor


def limited(inputs: Tensor, limit: float, free: Tensor) -> Tensor:
    """``max(1, max |x_j| / (t median_i max |x_i|))``; 1 where a channel is not free.

    Args:
        inputs: the largest magnitude of each channel.
        limit: ``t``.
        free: whether each channel may be scaled.
    """
    usable = free & (inputs > 0)
    factor = torch.ones_like(inputs)
    if bool(usable.any()):
        most = limit * inputs[usable].median()
        factor[usable] = (inputs[usable] / most).clamp(1.0, 1e4)
    return factor


def _raise_to(largest: Tensor, labels: Tensor, values: Tensor) -> None:
    known = labels >= 0
    largest.scatter_reduce_(0, labels[known].long(), values[known].float(), "amax")
