"""Cross-layer equalization: give the channels between two layers ranges that suit both.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction". Where
a layer's output goes to others through operators with ``f(s x) = s f(x)``, output channel ``i`` of
the first may be divided by ``s_i`` and the inputs of the others multiplied by it. With the ranges
``r1`` of the first one's rows and ``r2`` of the others' columns (equation 11)

    s_i = sqrt(r1_i / r2_i)

makes both ``sqrt(r1_i r2_i)``. Chains are gone through until that holds of all pairs (section
4.1.1). It is what weights with one scale for a whole tensor need.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from pt2q.algorithms.bias_absorption import absorbed
from pt2q.algorithms.engine import Lane, Walk
from pt2q.algorithms.kept import NOTHING
from pt2q.algorithms.layers import Layer, Passed, find_layers
from pt2q.algorithms.layerwise import Declined
from pt2q.algorithms.report import Report
from pt2q.algorithms.site_run import SiteRun
from pt2q.algorithms.sites import Sites
from pt2q.algorithms.task import GraphAlgorithm, Task
from pt2q.algorithms.transfer import Site


@dataclass(frozen=True)
class CrossLayerEqualization(GraphAlgorithm):
    """Equalize the ranges of channels between layers.

    Args:
        rounds: how often chains are gone through.
        absorb: move biases that lift channels above zero into the layers behind, afterwards.
    """

    name: ClassVar[str] = "equalization"

    rounds: int = 20
    absorb: bool = True

    def improve(self, task: Task) -> Report:
        """See `GraphAlgorithm.improve`."""
        with task.walk([Lane.floating()]) as walk:
            run = SiteRun(self.name, walk, replace(task, kept=NOTHING))
            sites, run.passed = _chains(walk)
            factors = dict(zip(map(id, sites), equalizing_factors(sites, self.rounds), strict=True))
            scaled = run.scaled(lambda site: (factors[id(site)], ""))
            report = run.run(sites, scaled, lambda site: 0.0)
        return report + self._absorbed(task) if self.absorb else report

    def _absorbed(self, task: Task) -> Report:
        """Biases are moved once all channels have their final size."""
        with task.walk([Lane.floating()]) as walk:
            run = SiteRun("bias_absorption", walk, replace(task, progress=None))
            sites, _ = _chains(walk)
            return run.run(sites, lambda site: absorbed(run, site), lambda site: 0.0)


@dataclass(frozen=True)
class _Ranges:
    """The largest magnitudes of a weight by output and input channel, ``[groups, out, in]``."""

    table: Tensor

    @classmethod
    def of(cls, layer: Layer, inputs: int) -> _Ranges:
        rows = layer.form.rows(layer.weight).abs()
        groups, out = rows.shape[:2]
        return cls(rows.reshape(groups, out, inputs // groups, -1).amax(3).double())

    def by_output(self) -> Tensor:
        return self.table.amax(2).reshape(-1)

    def by_input(self) -> Tensor:
        return self.table.amax(1).reshape(-1)

    def times(self, outputs: Tensor, inputs: Tensor) -> _Ranges:
        groups, out, k = self.table.shape
        return _Ranges(self.table * outputs.reshape(groups, out, 1) * inputs.reshape(groups, 1, k))


def equalizing_factors(sites: Sequence[Site], rounds: int) -> list[Tensor]:
    """A factor for the channels of each site, with which ranges on both sides agree.

    Args:
        sites: chains among them are gone through together.
        rounds: how often.
    """
    factors = [torch.ones(site.reach.count, dtype=torch.float64) for site in sites]
    ranges: dict[str, _Ranges] = {}
    for site in sites:
        for layer, labels in site.layers:
            ranges[layer.name] = _Ranges.of(layer, labels.shape[0])
    for site in sites:
        assert site.source.layer is not None
        ranges.setdefault(site.source.layer.name, _Ranges.of(site.source.layer, _inputs(site)))
    for _ in range(rounds):
        for site, factor in zip(sites, factors, strict=True):
            factor *= _equalize(site, ranges)
    return [factor.float() for factor in factors]


def _inputs(site: Site) -> int:
    """As many as there are groups, where nobody tells: only the outputs' ranges are asked for."""
    assert site.source.layer is not None
    return int(site.source.layer.form.rows(site.source.layer.weight).shape[0])


def _equalize(site: Site, ranges: dict[str, _Ranges]) -> Tensor:
    """Change the ranges around a site; gives the factor with which it was done."""
    source = site.source.layer
    assert source is not None
    before = ranges[source.name].by_output()
    after = torch.zeros_like(before)
    for layer, labels in site.layers:
        known = labels >= 0
        found = ranges[layer.name].by_input()[known]
        after.scatter_reduce_(0, labels[known].long(), found, "amax")
    usable = site.reach.free & (before > 0) & (after > 0)
    factor = torch.where(usable, (before / after.clamp(min=1e-300)).sqrt(), 1.0).clamp(1e-8, 1e8)
    ones = torch.ones(())
    table = ranges[source.name]
    ranges[source.name] = table.times(1 / factor, ones.expand(table.by_input().shape))
    for layer, labels in site.layers:
        each = torch.where(labels >= 0, factor[labels.long().clamp(min=0)], 1.0)
        table = ranges[layer.name]
        ranges[layer.name] = table.times(ones.expand(table.by_output().shape), each)
    return factor


def _chains(walk: Walk) -> tuple[list[Site], list[Passed]]:
    """The layers whose outputs go to others, in the order of the graph."""
    layers = find_layers(walk.program)
    finder = Sites(walk.program, layers)
    found, passed = [], list(layers.passed)
    for node in walk.schedule.nodes:
        source = finder.source(node)
        if source is None or source.layer is None:
            continue
        try:
            found.append(finder.site(source))
        except Declined as reason:
            passed.append(Passed(source.layer.name, str(reason)))
    return found, passed
