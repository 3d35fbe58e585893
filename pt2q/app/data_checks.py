"""What looks wrong with calibration data, with figures."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pt2q.deploy.signature import Batch, Signature
from pt2q.errors import CalibrationWarning
from pt2q.ir.graph import is_observer

BEYOND = 0.25
"""The share of a range by which data goes beyond it, or a range grows, before it is said."""
ENOUGH = 4
"""Batches from which on what lies beyond the others says something."""


def look_at(signature: Signature, calibration: Sequence[Batch], held_out: Sequence[Batch]) -> None:
    """Warn of inputs that are constant, samples that repeat, and held-out data beyond the rest.

    Args:
        signature: names the inputs.
        calibration, held_out: the batches.
    """
    for text in (*_fixed(signature, calibration, held_out), *_repeated(calibration)):
        warnings.warn(f"calibration data: {text}", CalibrationWarning, stacklevel=2)


def _fixed(
    signature: Signature, calibration: Sequence[Batch], held_out: Sequence[Batch]
) -> Iterator[str]:
    for place, wanted in enumerate(signature.inputs):
        if not wanted.dtype.is_floating_point:
            continue
        low, high = _extremes([batch[place] for batch in calibration])
        other_low, other_high = _extremes([batch[place] for batch in held_out])
        if low == high:
            yield f"input {wanted.name!r} is {low:g} everywhere, so that no range can be found"
            continue
        beyond = max(low - other_low, other_high - high) / (high - low)
        if beyond > BEYOND and len(calibration) >= ENOUGH:
            yield (
                f"held-out data of input {wanted.name!r} goes from {other_low:g} to "
                f"{other_high:g}, beyond the {low:g} to {high:g} that was calibrated on"
            )


def _extremes(tensors: Sequence[Tensor]) -> tuple[float, float]:
    found = [torch.aminmax(tensor.float()) for tensor in tensors if tensor.numel()]
    if not found:
        return 0.0, 0.0
    return float(min(pair.min for pair in found)), float(max(pair.max for pair in found))


def _repeated(calibration: Sequence[Batch]) -> Iterator[str]:
    different = len({_digest(batch) for batch in calibration})
    if len(calibration) > 1 and different == 1:
        yield f"all {len(calibration)} batches are the same"
    elif different * 2 < len(calibration):
        yield f"only {different} of {len(calibration)} batches are different"
    if calibration and all(map(_is_one_sample, calibration)):
        yield "every batch is one sample, repeated"


def _digest(batch: Batch) -> bytes:
    found = hashlib.blake2b(digest_size=16)
    for tensor in batch:
        found.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.digest()


def _is_one_sample(batch: Batch) -> bool:
    rows = [tensor for tensor in batch if tensor.dim() and len(tensor) > 1]
    return bool(rows) and all(bool((tensor == tensor[:1]).all()) for tensor in rows)


@dataclass
class Growth:
    """By how much of its range the last batch moved the limits of each observer.

    Args:
        limits: least and greatest value so far, by the observer's name.
        last: share of the range by which the batch at work has moved them, by name.
        batches: how many were seen.
    """

    limits: dict[str, tuple[float, float]] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    batches: int = 0

    def begin(self) -> None:
        """A new batch comes."""
        self.last.clear()
        self.batches += 1

    def see(self, name: str, value: Tensor) -> None:
        """A value reaches an observer."""
        found = torch.aminmax(value.detach().float())
        low, high = float(found.min), float(found.max)
        old_low, old_high = self.limits.get(name, (low, high))
        grown, width = max(old_low - low, high - old_high, 0.0), old_high - old_low
        if grown and width:
            self.last[name] = self.last.get(name, 0.0) + grown / width
        self.limits[name] = min(low, old_low), max(high, old_high)

    def warn(self) -> None:
        """Say which ranges the last batch still moved by much."""
        grown = {name: share for name, share in self.last.items() if share > BEYOND}
        if grown and self.batches >= ENOUGH:
            worst = max(grown, key=lambda name: grown[name])
            warnings.warn(
                f"calibration data: the last of {self.batches} batches still widened "
                f"{len(grown)} of {len(self.limits)} ranges by more than {BEYOND:.0%}, that of "
                f"{worst} by {grown[worst]:.0%}: calibrate on more",
                CalibrationWarning,
                stacklevel=2,
            )


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
