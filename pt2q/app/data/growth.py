"""Ranges that still grow when calibration ends."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from pt2q.app.data.checks import BEYOND, ENOUGH, Limits, extremes
from pt2q.errors import CalibrationWarning
from pt2q.ir.graph import is_observer


@dataclass
class Growth:
    """What observers saw before the last batch, and with it.

    Args:
        before: least and greatest value before the last batch, by the observer's name.
        limits: the same with the last batch.
        last: the number of the last batch; -1 before there is one.
        batches: how many were seen.
    """

    before: dict[str, Limits] = field(default_factory=dict)
    limits: dict[str, Limits] = field(default_factory=dict)
    last: int = -1
    batches: int = 0

    def begin(self, number: int) -> None:
        """A new batch comes.

        Args:
            number: its place among all.
        """
        self.before, self.last = dict(self.limits), number
        self.batches += 1

    def see(self, name: str, value: Tensor) -> None:
        """A value reaches an observer."""
        _widen(self.limits, {name: extremes(value)})

    def warn(self) -> None:
        """Say which ranges the last batch still moved by much."""
        grown = {name: share for name, share in self._shares() if share > BEYOND}
        if grown and self.batches >= ENOUGH:
            worst = max(grown, key=lambda name: grown[name])
            warnings.warn(
                f"calibration data: the last of {self.batches} batches still widened "
                f"{len(grown)} of {len(self.limits)} ranges by more than {BEYOND:.0%}, that of "
                f"{worst} by {grown[worst]:.0%}: calibrate on more",
                CalibrationWarning,
                stacklevel=2,
            )

    def _shares(self) -> Iterator[tuple[str, float]]:
        """By how much of its range the last batch moved the limits of each observer."""
        for name, (low, high) in self.before.items():
            new_low, new_high = self.limits[name]
            if high > low:
                yield name, (low - new_low + new_high - high) / (high - low)


def together(parts: Sequence[Growth]) -> Growth:
    """What several processes saw, as one that saw all batches in their order.

    Args:
        parts: that of each.
    """
    latest = max(parts, key=lambda part: part.last)
    found = Growth(last=latest.last, batches=sum(part.batches for part in parts))
    for part in parts:
        _widen(found.before, part.before if part is latest else part.limits)
        _widen(found.limits, part.limits)
    return found


def _widen(limits: dict[str, Limits], others: dict[str, Limits]) -> None:
    for name, (low, high) in others.items():
        old_low, old_high = limits.get(name, (low, high))
        limits[name] = min(old_low, low), max(old_high, high)


@contextmanager
def watched(prepared: nn.Module) -> Iterator[Growth]:
    """Within it, what reaches the observers of activations of a prepared model is looked at.

    Args:
        prepared: the model; hooks are on its observers until the end.

    Yields:
        What is found; call its `Growth.begin` before each batch.
    """
    growth = Growth()

    def hook(name: str) -> Any:
        def see(_: nn.Module, args: tuple[Any, ...]) -> None:
            value = args[0]
            if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
                growth.see(name, value)

        return see

    observers = {
        name: module
        for name, module in prepared.named_modules()
        if is_observer(module) and not getattr(module, "constant_input", False)
    }
    handles = [m.register_forward_pre_hook(hook(name)) for name, m in observers.items()]
    try:
        yield growth
    finally:
        for handle in handles:
            handle.remove()
