"""Observers by name: what recipes name, and what stands in where another granularity is needed.

To add one: write its file and give it a row in `OBSERVERS`. An installed package adds one by an
entry point in the group ``pt2q.observers``, a class or an `ObserverFamily`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pt2q.observers.fake_quantizers.fake_quantizer import FakeQuantize
from pt2q.observers.fake_quantizers.fake_quantizer_base import FakeQuantizeBase
from pt2q.observers.min_max.min_max import MinMaxObserver, PerChannelMinMaxObserver
from pt2q.observers.min_max.moving_average import (
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
)
from pt2q.observers.min_max.per_group import PerGroupMinMaxObserver
from pt2q.registry import Registry
from pt2q.spec.constructor import PartialWrapper, accepted, unwrapped
from pt2q.spec.granularity import Granularity, PerAxis, PerGroup, PerTensor


@dataclass(frozen=True)
class ObserverFamily:
    """One way to find a range, for each granularity that it knows.

    Args:
        per_tensor, per_axis, per_group: classes; None where there is none.
    """

    per_tensor: type | None = None
    per_axis: type | None = None
    per_group: type | None = None

    def member(self, granularity: Granularity) -> type | None:
        """The class for a granularity, or None."""
        kinds = {PerTensor: self.per_tensor, PerAxis: self.per_axis, PerGroup: self.per_group}
        return kinds.get(type(granularity))

    def __contains__(self, cls: object) -> bool:
        return cls is not None and cls in (self.per_tensor, self.per_axis, self.per_group)


MIN_MAX = ObserverFamily(MinMaxObserver, PerChannelMinMaxObserver, PerGroupMinMaxObserver)
MOVING_AVERAGE = ObserverFamily(MovingAverageMinMaxObserver, MovingAveragePerChannelMinMaxObserver)


def _family(name: str, found: object) -> ObserverFamily:
    if isinstance(found, ObserverFamily):
        return found
    if not isinstance(found, type) or not hasattr(found, "calculate_qparams"):
        raise TypeError(f"{name}: expected an observer class or an ObserverFamily, found {found!r}")
    return ObserverFamily(
        found if serves(found, PerTensor()) else None, found if serves(found, PerAxis(0)) else None
    )


def serves(cls: object, granularity: Granularity) -> bool:
    """Whether an observer class can find parameters of a granularity, as far as it says.

    Args:
        cls: its ``per_channel`` says whether it is for axes or for tensors alone; without one, as
            a function has none, it is told the scheme and taken to heed it.
        granularity: the one asked for.
    """
    if isinstance(granularity, PerGroup):
        return cls in MIN_MAX and cls is MIN_MAX.per_group
    per_channel = getattr(cls, "per_channel", None)
    return per_channel is None or per_channel == isinstance(granularity, PerAxis)


def constructor_for(constructor: Any, granularity: Granularity) -> Any:
    """The constructor of the same kind of observer for another granularity.

    Args:
        constructor: of an observer or fake quantizer, as specs have it.
        granularity: the one asked for.

    Returns:
        ``constructor`` itself where it serves, one of another class with the same arguments, or
        None where no class of the kind is known.
    """
    cls, arguments = unwrapped(constructor)
    if isinstance(cls, type) and issubclass(cls, FakeQuantizeBase):
        inner = arguments.get("observer", MovingAverageMinMaxObserver)
        found = constructor_for(inner, granularity)
        whole = "observer" in arguments or issubclass(cls, FakeQuantize)
        if not whole or found is inner:
            return constructor
        return None if found is None else PartialWrapper(constructor).with_args(observer=found)
    if serves(cls, granularity):
        return constructor
    twins = (f.member(granularity) for f in OBSERVERS.available().values() if cls in f)
    twin = next(twins, None)
    if twin is None:
        return None
    kept = accepted(twin, arguments)
    return PartialWrapper(twin).with_args(**kept) if kept else twin


OBSERVERS: Registry[ObserverFamily] = Registry(
    "observer",
    "pt2q.observers",
    {
        "histogram": "pt2q.observers.histogram.histogram:HistogramObserver",
        "minmax": "pt2q.observers.families:MIN_MAX",
        "moving-average": "pt2q.observers.families:MOVING_AVERAGE",
    },
    _family,
)
"""The observers that have a name."""
