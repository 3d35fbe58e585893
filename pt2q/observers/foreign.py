"""Observers of another PT2E stack: which of ours replace them, and how the rest is asked.

Its observers and fake quantizers that ours replace one for one are replaced, all others are used as
they are. The other stack is never imported: its classes are looked up only where one of its
objects arrived, and so it is loaded.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch

from pt2q.ir.dtypes import STORED_AS
from pt2q.observers.base.observer_base import ObserverBase
from pt2q.observers.fake_quantizers.fake_quantizer import FakeQuantize
from pt2q.observers.fake_quantizers.fake_quantizer_base import FakeQuantizeBase
from pt2q.observers.fake_quantizers.fused import FusedMovingAvgObsFakeQuantize
from pt2q.observers.histogram.histogram import HistogramObserver
from pt2q.observers.min_max.min_max import MinMaxObserver, PerChannelMinMaxObserver
from pt2q.observers.min_max.moving_average import (
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
)
from pt2q.observers.without_statistics.placeholder import NoopObserver, PlaceholderObserver
from pt2q.spec.constructor import unwrapped, with_args

_OURS = {
    cls.__name__: cls
    for cls in (
        FakeQuantize,
        FusedMovingAvgObsFakeQuantize,
        HistogramObserver,
        MinMaxObserver,
        MovingAverageMinMaxObserver,
        MovingAveragePerChannelMinMaxObserver,
        NoopObserver,
        PerChannelMinMaxObserver,
        PlaceholderObserver,
    )
}
_PEER_MODULES = (
    "torchao.quantization.pt2e.observer",
    "torchao.quantization.pt2e.fake_quantize",
    "torch.ao.quantization.observer",
    "torch.ao.quantization.fake_quantize",
)

# What says nothing about the result, or nothing at its usual value.
_MEANINGLESS = frozenset({"memoryless", "factory_kwargs", "custom_op_name", "compute_dtype"})
_KNOWN = frozenset(
    {"dtype", "quant_min", "quant_max", "qscheme", "ch_axis", "is_dynamic", "eps"}
    | {"averaging_constant"}
)


def replacement_for(ctr: Any) -> Any:
    """Ours for a constructor of the peer whose observer or fake quantizer ours replaces.

    Args:
        ctr: a class, or what its ``with_args`` returned.

    Returns:
        Our constructor with the same arguments, or ``ctr`` itself.
    """
    cls, arguments = unwrapped(ctr)
    ours = _replacements().get(cls) if isinstance(cls, type) else None
    if ours is None or arguments.pop("reduce_range", False):
        return ctr
    if isinstance(arguments.get("dtype"), torch.dtype):
        arguments["dtype"] = STORED_AS.get(arguments["dtype"], arguments["dtype"])
    if issubclass(ours, FakeQuantize) and "observer" in arguments:
        arguments["observer"] = replacement_for(arguments["observer"])
        if not _is_ours(arguments["observer"]):
            return ctr
    if not set(arguments) <= _KNOWN | _MEANINGLESS | {"observer"}:
        return ctr
    kept = {k: v for k, v in arguments.items() if k not in _MEANINGLESS}
    return with_args(ours, **kept)


def _is_ours(ctr: Any) -> bool:
    cls, _ = unwrapped(ctr)
    return isinstance(cls, type) and issubclass(cls, ObserverBase)


def _replacements() -> dict[Any, Any]:
    """Our class for each of the peer's that is loaded."""
    return {
        cls: ours
        for module in _PEER_MODULES
        if module in sys.modules
        for cls, ours in _peer_classes(module).items()
    }


@functools.cache
def _peer_classes(module: str) -> dict[Any, Any]:
    peer = sys.modules[module]
    return {getattr(peer, name): ours for name, ours in _OURS.items() if hasattr(peer, name)}


def is_foreign(observer: Any) -> bool:
    """Whether an observer or fake quantizer in a model is of another library."""
    return not isinstance(observer, ObserverBase | FakeQuantizeBase)
