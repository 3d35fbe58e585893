"""Find the factor of a site's channels among a family with one number, the strength."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from pt2q.algorithms.engine.rounding import is_static, rounding_of
from pt2q.algorithms.engine.walk import FLOAT
from pt2q.algorithms.layers import Layer, Use
from pt2q.algorithms.layerwise import Declined
from pt2q.algorithms.site_run import SiteRun
from pt2q.algorithms.transfer import Site, scaled_inputs
from pt2q.algorithms.trial import forget, fresh
from pt2q.ir import ops
from pt2q.ir.graph import is_observer_call, value_of

SEARCHED = 4
"""So many batches are enough to find the strength on."""
ROWS = 512
"""So many rows of them for products, and so many images for convolutions."""
IMAGES = 8

Family = Callable[[float], Tensor]
"""The factor of each channel for a strength."""


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
    """Finds the strength with the least error of the layers' outputs.

    Args:
        run: stands before the site.
        strengths: those to choose from, in order.
        family: gives the factors of a site.
        inserted: multiplications that were written for a site; named in the report.
    """

    run: SiteRun
    strengths: Sequence[float]
    family: Callable[[SiteRun, Site], Family]
    inserted: frozenset[Node] = frozenset()

    def __call__(self, site: Site) -> tuple[Tensor, str]:
        """The factor, and the strength in words.

        Raises:
            Declined: none is better than no factor.
        """
        family = self.family(self.run, site)
        cases = [_Case.of(self.run, reader) for reader in readers_of(site)]
        least = sum(case.error(torch.ones(site.reach.count)) for case in cases)
        errors: dict[float, float] = {}
        for strength in _coarse_to_fine(self.strengths, errors):
            factor = family(strength)
            errors[strength] = sum(case.error(factor) for case in cases)
        best = min(errors, key=lambda strength: (errors[strength], strength))
        if not errors[best] < least:
            raise Declined("no strength lowers the error of its output")
        place = ", by a multiplication" if site.source.node in self.inserted else ""
        return family(best), f"strength {best:g}{place}"


def _coarse_to_fine(values: Sequence[float], errors: dict[float, float]) -> Iterator[float]:
    """Every second value, then the neighbours of the best of them."""
    yield from values[1::2] or values
    best = values.index(min(errors, key=lambda value: (errors[value], value)))
    yield from (v for v in values[max(best - 1, 0) : best + 2] if v not in errors)


@dataclass(frozen=True)
class _Case:
    """One call with some inputs, and what it gives for them in float."""

    reader: Reader
    inputs: Tensor
    exact: Tensor
    of_inputs: Any
    of_weight: Any

    @classmethod
    def of(cls, run: SiteRun, reader: Reader) -> _Case:
        use = reader.use
        rows = run.walk.replay([use.x], run.walk.lanes[FLOAT], batches=run.fit[:SEARCHED])
        inputs = _few(torch.cat([row[use.x] for row in rows]), use)
        exact = use.run(inputs, reader.layer.weight, None)
        own = fresh(_observer(use)) if is_quantized(use) else None
        return cls(reader, inputs, exact, own, fresh(reader.layer.observer))

    def error(self, factor: Tensor) -> float:
        """The squared error of the output with a factor taken out of the input."""
        layer, labels, use = self.reader.layer, self.reader.labels, self.reader.use
        weight = scaled_inputs(layer, labels, factor)
        each = torch.where(labels >= 0, factor[labels.long().clamp(min=0)], 1.0)
        inputs = _rounded(self.of_inputs, self.inputs / each.reshape(beside_inputs(use)))
        found = use.run(inputs, _rounded(self.of_weight, weight), None)
        return float((self.exact - found).square().sum())


def _rounded(observer: Any, value: Tensor) -> Tensor:
    """A value on the grid that an observer finds for it alone."""
    if observer is None:
        return value
    if is_static(observer):
        forget(observer)
        observer(value)
    return rounding_of(observer, value.dim())(value)


def _observer(use: Use) -> Any:
    return use.owner.get_submodule(str(use.x.target))


def is_quantized(use: Use) -> bool:
    """Whether a layer's input is quantized."""
    return is_observer_call(use.owner, use.x)


def input_axis(use: Use) -> int:
    """The dimension of the input that has the channels, counted from the last."""
    convolution = ops.is_op(use.node, ops.CONV | ops.CONV_GENERIC)
    spatial = value_of(ops.argument(use.node, "weight")).dim() - 2 if convolution else 0
    return -1 - int(spatial)


def beside_inputs(use: Use) -> list[int]:
    """The shape in which a number for each channel lines up with the input."""
    return [-1, *[1] * (-input_axis(use) - 1)]


def over_inputs(use: Use, x: Tensor) -> Tensor:
    """The input as ``[n, channels]``."""
    axis = input_axis(use)
    return x.movedim(axis, -1).reshape(-1, x.shape[axis])


def _few(x: Tensor, use: Use) -> Tensor:
    if ops.is_op(use.node, ops.CONV | ops.CONV_GENERIC):
        return x[:: max(1, x.shape[0] // IMAGES)]
    rows = x.reshape(-1, x.shape[-1])
    return rows[:: max(1, rows.shape[0] // ROWS)]
