"""What looks wrong with calibration data, with figures."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pt2q.deploy.signature import Batch, Signature
from pt2q.errors import CalibrationWarning

BEYOND = 0.25
"""The share of a range by which data goes beyond it, or a range grows, before it is said."""
ENOUGH = 4
"""Batches from which on what lies beyond the others says something."""
MANY = 10_000
"""So many different batches are told apart; of more, none is said to be repeated."""

Limits = tuple[float, float]
"""Least and greatest."""


@dataclass
class Look:
    """What there is to know of batches that were gone through, in little memory.

    Args:
        limits: of each floating-point input, by its place.
        different: digests of batches.
        batches: how many there were.
        one_sample: every one of them is one sample, repeated.
    """

    limits: dict[int, Limits] = field(default_factory=dict)
    different: set[bytes] = field(default_factory=set)
    batches: int = 0
    one_sample: bool = True

    def see(self, batch: Batch) -> None:
        """Take in a batch."""
        self.batches += 1
        self.one_sample = self.one_sample and _is_one_sample(batch)
        if len(self.different) < MANY:
            self.different.add(_digest(batch))
        for place, tensor in enumerate(batch):
            if tensor.is_floating_point() and tensor.numel():
                self._widen(place, extremes(tensor))

    def add(self, other: Look) -> None:
        """Take in what another one saw."""
        self.batches += other.batches
        self.one_sample = self.one_sample and other.one_sample
        self.different |= other.different
        for place, limits in other.limits.items():
            self._widen(place, limits)

    def _widen(self, place: int, limits: Limits) -> None:
        old = self.limits.get(place, limits)
        self.limits[place] = min(old[0], limits[0]), max(old[1], limits[1])

    def warn(self, signature: Signature, held_out: Iterable[Batch], of: str = "") -> None:
        """Warn of inputs that are constant, samples that repeat, and held-out data beyond the rest.

        Args:
            signature: names the inputs.
            held_out: batches that were not looked at.
            of: whose data it is, where there are several.
        """
        kept = Look()
        for batch in held_out:
            kept.see(batch)
        for text in (*self._fixed(signature, kept), *self._repeated()):
            warnings.warn(f"calibration data{of}: {text}", CalibrationWarning, stacklevel=2)

    def _fixed(self, signature: Signature, kept: Look) -> Iterator[str]:
        for place, (low, high) in sorted(self.limits.items()):
            name = signature.inputs[place].name
            if low == high:
                yield f"input {name!r} is {low:g} everywhere, so that no range can be found"
                continue
            other_low, other_high = kept.limits.get(place, (low, high))
            beyond = max(low - other_low, other_high - high) / (high - low)
            if beyond > BEYOND and self.batches >= ENOUGH:
                yield (
                    f"held-out data of input {name!r} goes from {other_low:g} to "
                    f"{other_high:g}, beyond the {low:g} to {high:g} that was calibrated on"
                )

    def _repeated(self) -> Iterator[str]:
        different = len(self.different)
        if self.batches > 1 and different == 1:
            yield f"all {self.batches} batches are the same"
        elif different * 2 < self.batches and different < MANY:
            yield f"only {different} of {self.batches} batches are different"
        if self.batches and self.one_sample:
            yield "every batch is one sample, repeated"


def extremes(tensor: Tensor) -> Limits:
    """The least and the greatest value of a tensor.

    Args:
        tensor: of numbers, one at least.
    """
    found = torch.aminmax(tensor.detach().float())
    return float(found.min), float(found.max)


def _digest(batch: Batch) -> bytes:
    found = hashlib.blake2b(digest_size=16)
    for tensor in batch:
        found.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.digest()


def _is_one_sample(batch: Batch) -> bool:
    rows = [tensor for tensor in batch if tensor.dim() and len(tensor) > 1]
    return bool(rows) and all(bool((tensor == tensor[:1]).all()) for tensor in rows)
