"""Running sums over values that come batch by batch: nothing of a batch is kept."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pt2q.debug import reasons
from pt2q.debug.error import Error
from pt2q.ir.torch_private import pytree
from pt2q.quantizers.toolkit.reasons import Reason


@dataclass
class ErrorSums:
    """Sums from which an `Error` is made, in double precision."""

    signal: float = 0.0
    noise: float = 0.0
    other: float = 0.0
    product: float = 0.0
    largest: float = 0.0
    count: int = 0
    differing: int = 0
    nonfinite: int = 0
    nonfinite_reference: int = 0
    is_float: bool = False

    def add(self, reference: Any, value: Any) -> Reason | None:
        """Take in one pair of values: tensors, or tuples of tensors.

        Returns:
            Why the two cannot be compared, in which case nothing is taken in; else None.
        """
        pairs = list(zip(pytree.tree_leaves(reference), pytree.tree_leaves(value), strict=False))
        reason = mismatch(reference, value)
        for one, other in pairs if not reason else ():
            if isinstance(one, Tensor):
                self._add(one.detach(), other.detach())
        return reason

    def _add(self, reference: Tensor, value: Tensor) -> None:
        self.count += reference.numel()
        if reference.is_complex():
            reference, value = torch.view_as_real(reference), torch.view_as_real(value)
        if reference.is_floating_point():
            self.is_float = True
        else:
            self.differing += int((reference != value).sum())
        if self._added_fast(reference, value):
            return
        # Made new: the two may be views of tensors that the graph writes into.
        one, other = reference.to(torch.float64).flatten(), value.to(torch.float64).flatten()
        error = one - other
        if not math.isfinite(sum_ := float(error.sum())) or math.isnan(sum_):
            one, other, error = self._finite(one, other)
        self.signal += float(one.dot(one))
        self.other += float(other.dot(other))
        self.product += float(one.dot(other))
        self.noise += float(error.dot(error))
        if error.numel():
            self.largest = max(self.largest, float(torch.linalg.vector_norm(error, math.inf)))

    def _added_fast(self, reference: Tensor, value: Tensor) -> bool:
        """Sum large values in single precision, by blocks; neither tiny nor huge ones, nor NaN.

        It takes a third of the time, and changes a ratio by less than 0.0001 dB.
        """
        single = reference.dtype is torch.float32 and value.dtype is torch.float32
        if not single or reference.numel() <= _BLOCK:
            return False
        one, other = reference.flatten(), value.flatten()
        error = one - other
        low, high = (float(v) for v in torch.aminmax(error))
        squares = [_dot(one, one), _dot(other, other), _dot(one, other), _dot(error, error)]
        largest = max(-low, high)
        plain = all(_TINY < squares[i] < _HUGE for i in (0, 1))
        if not plain or not (largest == 0 or _TINY < squares[3] < _HUGE):
            return False
        self.signal += squares[0]
        self.other += squares[1]
        self.product += squares[2]
        self.noise += squares[3]
        self.largest = max(self.largest, largest)
        return True

    def _finite(self, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        both = torch.isfinite(one) & torch.isfinite(other)
        agree = (one == other) | (torch.isnan(one) & torch.isnan(other))
        self.nonfinite += int((~both & ~agree).sum())
        self.nonfinite_reference += int((~torch.isfinite(one)).sum())
        one, other = one[both], other[both]
        return one, other, one - other

    def result(self) -> Error | None:
        """The error so far; None if nothing was compared."""
        if not self.count:
            return None
        norm = math.sqrt(self.signal) * math.sqrt(self.other)
        return Error(
            decibels(self.signal, self.noise),
            self.largest,
            self.product / norm if norm > 0 else math.nan,
            self.count,
            None if self.is_float else self.differing,
            self.nonfinite,
            self.nonfinite_reference,
        )


_TINY, _HUGE = 1e-18, 1e30
"""Sums of squares between these are sums of normal numbers in single precision."""
_BLOCK = 1 << 14


def _dot(one: Tensor, other: Tensor) -> float:
    """A dot product of which single precision sums no more than a block."""
    whole = one.numel() // _BLOCK * _BLOCK
    blocks = torch.linalg.vecdot(one[:whole].view(-1, _BLOCK), other[:whole].view(-1, _BLOCK))
    return float(blocks.double().sum()) + float(one[whole:].dot(other[whole:]))


def decibels(signal: float, noise: float) -> float:
    """``10 log10(signal / noise)``."""
    if noise == 0:
        return math.inf
    return 10 * (math.log10(signal) - math.log10(noise)) if signal > 0 else -math.inf


def mismatch(reference: Any, value: Any) -> Reason | None:
    """Why two values cannot be compared; None if they can."""
    ones, others = pytree.tree_leaves(reference), pytree.tree_leaves(value)
    if len(ones) != len(others):
        return reasons.OTHER_NUMBER.filled(float=len(ones), quantized=len(others))
    for one, other in zip(ones, others, strict=True):
        if isinstance(one, Tensor) != isinstance(other, Tensor):
            return reasons.TENSOR_IN_ONE
        if isinstance(one, Tensor) and one.shape != other.shape:
            return reasons.OTHER_SHAPE.filled(float=tuple(one.shape), quantized=tuple(other.shape))
        if isinstance(one, Tensor) and _kind(one) != _kind(other):
            return reasons.OTHER_KIND.filled(float=one.dtype, quantized=other.dtype)
    return None


def _kind(value: Tensor) -> bool:
    return value.is_floating_point() or value.is_complex()
