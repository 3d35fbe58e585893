"""The observers and fake quantizers that configurations take where the user names none."""

from __future__ import annotations

from pt2q import observers
from pt2q.observers import FusedMovingAvgObsFakeQuantize
from pt2q.quantizers.toolkit.config import Mode
from pt2q.spec import ObserverOrFakeQuantizeConstructor


def activation_constructor(
    mode: Mode, *, min_scale: float = 0.0, per_token: bool = False
) -> ObserverOrFakeQuantizeConstructor:
    """What finds the range of an activation.

    Args:
        mode: when it is found.
        min_scale: the smallest scale it may give; 0 leaves that to the observer.
        per_token: at run time, each token gets a scale of its own.
    """
    floor = {"eps": min_scale} if min_scale else {}
    if mode is Mode.DYNAMIC:
        tokens = {"per_token": True} if per_token else {}
        return observers.PlaceholderObserver.with_args(**tokens, **floor)
    if mode is Mode.STATIC:
        return observers.HistogramObserver.with_args(**floor)
    return FusedMovingAvgObsFakeQuantize.with_args(
        observer=observers.MovingAverageMinMaxObserver, **floor
    )


def weight_constructor(
    *, per_channel: bool, is_qat: bool, min_scale: float = 0.0
) -> ObserverOrFakeQuantizeConstructor:
    """What finds the range of a weight.

    Args:
        per_channel: each channel has a range of its own.
        is_qat: it rounds in training, too.
        min_scale: the smallest scale it may give; 0 leaves that to the observer.
    """
    floor = {"eps": min_scale} if min_scale else {}
    if not is_qat:
        kind = observers.PerChannelMinMaxObserver if per_channel else observers.MinMaxObserver
        return kind.with_args(**floor)
    # Weights change with every step, and their range is known exactly: nothing is averaged.
    moving = (
        observers.MovingAveragePerChannelMinMaxObserver
        if per_channel
        else observers.MovingAverageMinMaxObserver
    )
    return FusedMovingAvgObsFakeQuantize.with_args(observer=moving, averaging_constant=1.0, **floor)
