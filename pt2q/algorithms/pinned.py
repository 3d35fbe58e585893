"""An observer whose parameters an algorithm has chosen, and how it takes the place of another."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from pt2q.algorithms.engine.rounding import Grid
from pt2q.ir.control_flow import graph_modules
from pt2q.observers import DerivedObserverOrFakeQuantize, UniformQuantizationObserverBase
from pt2q.spec import Granularity, PerGroup


class PinnedObserver(UniformQuantizationObserverBase):
    """Scale and zero point as given, of any shape: per tensor, channel or group.

    It needs no data, and what is converted has exactly these parameters.

    Args:
        grid: the parameters.
        qscheme: the scheme that they are of.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, grid: Grid, qscheme: torch.qscheme) -> None:
        super().__init__(
            dtype=grid.dtype,
            quant_min=grid.quant_min,
            quant_max=grid.quant_max,
            qscheme=qscheme,
            ch_axis=grid.axis,
            eps=grid.floor,
        )
        self.group_size = grid.group_size
        self.scale_dtype = grid.scale_dtype
        self.register_buffer("scale", grid.scale.detach().clone())
        self.register_buffer("zero_point", grid.zero_point.detach().clone())

    @property
    def granularity(self) -> Granularity:
        """How much of the tensor shares a scale."""
        return super().granularity if self.group_size is None else PerGroup(self.group_size)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` and take no notice."""
        return x

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """The parameters given."""
        return self.scale, self.zero_point


def pinned(observer: Any, grid: Grid) -> PinnedObserver:
    """A pinned observer for the place of another.

    Args:
        observer: whose scheme it keeps.
        grid: the parameters.
    """
    made = PinnedObserver(grid, observer.qscheme)
    made.node_name = getattr(observer, "node_name", "")
    made.train(observer.training)
    return made


def replace_observer(model: GraphModule, old: Any, new: Any) -> None:
    """Put an observer in the place of another, wherever that is called or derived from.

    Args:
        model: a prepared module; changed in place, bodies of control flow too.
        old, new: the observers.
    """
    for module in graph_modules(model):
        for name, found in list(module._modules.items()):
            if found is old:
                module._modules[name] = new
            elif isinstance(found, DerivedObserverOrFakeQuantize):
                found.obs_or_fqs = tuple(_swapped(found.obs_or_fqs, old, new))


def _swapped(sources: Iterable[Any], old: Any, new: Any) -> list[Any]:
    return [new if source is old else source for source in sources]
