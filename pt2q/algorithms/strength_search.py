"""Find the factor of a site's channels among families with one number each, as the strength."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from pt2q.algorithms.engine.rounding import Grid, is_static, rounding_of
from pt2q.algorithms.engine.walk import FLOAT
from pt2q.algorithms.layers import Layer, Use
from pt2q.algorithms.layerwise import Declined
from pt2q.algorithms.site_run import SiteRun
from pt2q.algorithms.transfer import Site, scaled_inputs
from pt2q.algorithms.trial import forget, fresh
from pt2q.ir import ops
from pt2q.ir.graph import is_observer_call, value_of
from pt2q.numerics.qparams import choose_qparams
from pt2q.observers import HistogramObserver

SEARCHED = 4
"""So many batches are enough to find the strength on."""
ROWS = 512
"""So many rows of them for products, and so many images for convolutions."""
IMAGES = 8

Family = Callable[[float], Tensor]
"""The factor of each channel for a number."""
Families = Mapping[str, Family]
"""By what the number is called."""


@dataclass(frozen=True)
class Reader:
    """One call of a layer at a site.

    Args:
        layer: the layer.
        labels: the channel of each of its inputs.
        use: the call.
    """

    layer: Layer
    labels: Tensor
    use: Use


def readers_of(site: Site) -> list[Reader]:
    """The calls that read a site's value."""
    return [Reader(layer, labels, use) for layer, labels in site.layers for use in layer.uses]


@dataclass(frozen=True)
class StrengthSearch:
    """Finds the factor with the least error of the layers' outputs.

    Args:
        run: stands before the site.
        numbers: those to choose from, in order, by what they are called.
        families: gives the factors of a site for each of these names.
        inserted: multiplications that were written for a site; named in the report.
    """

    run: SiteRun
    numbers: Mapping[str, Sequence[float]]
    families: Callable[[SiteRun, Site], Families]
    inserted: frozenset[Node] = frozenset()

    def __call__(self, site: Site) -> tuple[Tensor, str]:
        """The factor, and what it is in words.

        Raises:
            Declined: none is better than no factor.
        """
        families = self.families(self.run, site)
        cases = _cases(self.run, readers_of(site))
        least = _error(cases, torch.ones(site.reach.count))
        tried = {
            (name, place): _error(cases, families[name](numbers[place]))
            for name, numbers in self.numbers.items()
            for place in _coarse(numbers)
        }
        name, place = _best(tried)
        for near in (place - 1, place + 1):
            if 0 <= near < len(self.numbers[name]) and (name, near) not in tried:
                tried[name, near] = _error(cases, families[name](self.numbers[name][near]))
        name, place = _best(tried)
        if not tried[name, place] < least:
            raise Declined(f"no {' or '.join(self.numbers)} lowers the error of its output")
        found = self.numbers[name][place]
        where = ", by a multiplication" if site.source.node in self.inserted else ""
        return families[name](found), f"{name} {found:g}{where}"


def _coarse(numbers: Sequence[float]) -> range:
    """The places of every second number; the neighbours of the best of them are tried after."""
    return range(1 if len(numbers) > 1 else 0, len(numbers), 2)


def _best(tried: Mapping[tuple[str, int], float]) -> tuple[str, int]:
    return min(tried, key=lambda one: (tried[one], one))


@dataclass(frozen=True)
class _Case:
    """One call with some inputs, and what it gives for them in float."""

    reader: Reader
    inputs: Tensor
    exact: Tensor
    of_inputs: Any
    of_weight: Any

    @classmethod
    def of(cls, reader: Reader, inputs: Tensor) -> _Case:
        use = reader.use
        exact = use.run(inputs, reader.layer.weight, None)
        own = fresh(_observer(use)) if is_quantized(use) else None
        return cls(reader, inputs, exact, own, fresh(reader.layer.observer))

    def divided(self, factor: Tensor) -> Tensor:
        """The input as rounded with a factor taken out of it."""
        labels, use = self.reader.labels, self.reader.use
        each = torch.where(labels >= 0, factor[labels.long().clamp(min=0)], 1.0)
        return _rounded(self.of_inputs, self.inputs / each.reshape(beside_inputs(use)))

    def error(self, factor: Tensor, inputs: Tensor) -> float:
        """The squared error of the output with a factor put into the weight."""
        weight = scaled_inputs(self.reader.layer, self.reader.labels, factor)
        found = self.reader.use.run(inputs, _rounded(self.of_weight, weight), None)
        return float((self.exact - found).square().sum())


def _cases(run: SiteRun, readers: Sequence[Reader]) -> list[_Case]:
    """Each call with a few of the inputs to compute from."""
    wanted = list(dict.fromkeys(reader.use.x for reader in readers))
    batches = run.parting.fit[:SEARCHED]
    found = run.walk.replay(wanted, run.walk.lanes[FLOAT], batches=batches)
    cut = run.parting.to_fit
    rows = run.walk.shared(([cut(row[x]) for x in wanted] for row in found), batches)
    use_of = {reader.use.x: reader.use for reader in readers}
    inputs = {
        x: _few(values, is_convolution(use_of[x]))
        for x, values in zip(wanted, zip(*rows, strict=True), strict=True)
    }
    return [_Case.of(reader, part) for reader in readers for part in inputs[reader.use.x]]


def _error(cases: Sequence[_Case], factor: Tensor) -> float:
    """The summed error of calls; what several read is rounded once."""
    rounded: dict[int, Tensor] = {}
    total = 0.0
    for case in cases:
        key = id(case.inputs)
        if key not in rounded:
            rounded[key] = case.divided(factor)
        total += case.error(factor, rounded[key])
    return total


def _rounded(observer: Any, value: Tensor) -> Tensor:
    """A value on the grid that an observer finds for it alone.

    What a search over a histogram would clip is left in: a strength that is good because large
    values are clipped lowers the error of the layer and raises that of the model, for what is far
    larger than all else is seldom noise.
    """
    if observer is None:
        return value
    if isinstance(observer, HistogramObserver):
        return _covering(observer, value).round(value)
    if is_static(observer):
        forget(observer)
        observer(value)
    return rounding_of(observer, value.dim())(value)


def _covering(observer: HistogramObserver, value: Tensor) -> Grid:
    """The grid that covers all of a value."""
    low, high, dtype = observer.quant_min, observer.quant_max, observer.dtype
    assert low is not None and high is not None, "it has been made for a spec"
    scale, zero_point = choose_qparams(
        *torch.aminmax(value.float()),
        quant_min=low,
        quant_max=high,
        dtype=dtype,
        qscheme=observer.qscheme,
        eps=observer.eps,
    )
    return Grid(scale.reshape(1), zero_point.reshape(1), low, high, dtype)


def _observer(use: Use) -> Any:
    return use.owner.get_submodule(str(use.x.target))


def is_quantized(use: Use) -> bool:
    """Whether a layer's input is quantized."""
    return is_observer_call(use.owner, use.x)


def input_axis(use: Use) -> int:
    """The dimension of the input that has the channels, counted from the last."""
    spatial = value_of(ops.argument(use.node, "weight")).dim() - 2 if is_convolution(use) else 0
    return -1 - int(spatial)


def beside_inputs(use: Use) -> list[int]:
    """The shape in which a number for each channel lines up with the input."""
    return [-1, *[1] * (-input_axis(use) - 1)]


def over_inputs(use: Use, x: Tensor) -> Tensor:
    """The input as ``[n, channels]``."""
    axis = input_axis(use)
    return x.movedim(axis, -1).reshape(-1, x.shape[axis])


def is_convolution(use: Use) -> bool:
    """Whether a call is a convolution of any kind."""
    return ops.is_op(use.node, ops.CONV | ops.CONV_GENERIC)


def _few(parts: Sequence[Tensor], images: bool) -> list[Tensor]:
    """Some of the inputs of several batches: rows, or images of each size that there is."""
    if not images:
        rows = torch.cat([x.reshape(-1, x.shape[-1]) for x in parts])
        return [rows[:: max(1, rows.shape[0] // ROWS)]]
    by_size: dict[torch.Size, list[Tensor]] = {}
    for x in parts:
        by_size.setdefault(x.shape[1:], []).append(x)
    joined = [torch.cat(alike) for alike in by_size.values()]
    step = max(1, sum(len(x) for x in joined) // IMAGES)
    return [x[::step] for x in joined]
