"""What a layer's inputs are like: the sums that say what an error in a weight does to the output.

For ``y = x W^T`` the squared error of the output is ``tr(D H D^T)``, where ``D`` is the error of
the weight and ``H = sum x x^T`` (Hassibi and Stork 1993, "Second order derivatives for network
pruning: Optimal Brain Surgeon", section 2).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from pt2q.algorithms.samples import Sample, Samples

_ROWS = 8192


@dataclass(frozen=True)
class Moments:
    """Sums over all positions of all calls.

    Attributes:
        within: ``sum x x^T`` of the quantized inputs, ``[groups, k, k]``, float64.
        across: ``sum (f - x) x^T`` with the float inputs ``f``, of the same shape.
        count: how many positions.
    """

    within: Tensor
    across: Tensor
    count: int

    @property
    def importance(self) -> Tensor:
        """The mean square of each input, ``[groups, 1, k]`` in float32."""
        return (self.within.diagonal(dim1=1, dim2=2) / max(self.count, 1)).float()[:, None]


@torch.no_grad()
def moments(samples: Samples) -> Moments:
    """The sums over a layer's calls to fit on, those of all processes.

    They are exact sums of what each call adds, so that neither the order nor who adds what makes a
    difference: columns are scaled by powers of two so that no element is larger than 1, and each
    product is rounded to a multiple of a power of two so small that a sum still has all its bits in
    float64 (the rounding ahead of summation in Demmel and Nguyen 2013, "Fast Reproducible
    Floating-Point Summation", section III).

    Args:
        samples: at least one, here or elsewhere.
    """
    sizes = [_Size.of(*_columns(sample)) for sample in samples.fit]
    size = _Size.largest(chain.from_iterable(samples.ranks.gather(sizes)))
    groups, k = size.rounded.shape
    within, across = (torch.zeros(groups, k, k, dtype=torch.float64) for _ in range(2))
    for sample in samples.fit:
        for x, d in _scaled(sample, size):
            within += size.on_grid(x.transpose(1, 2) @ x)
            across += size.on_grid(d.transpose(1, 2) @ x)
    within, across = (samples.ranks.total(each) for each in (within, across))
    right = size.rounded[:, None, :].double()
    within = within * size.rounded[:, :, None] * right
    return Moments(within, across * size.missing[:, :, None] * right, size.count)


def _columns(sample: Sample) -> tuple[Tensor, Tensor]:
    """The quantized inputs of a call and what they lack, ``[groups, n, k]``.

    Args:
        sample: the call.
    """
    rounded = sample.use.form.columns(sample.rounded).float()
    return rounded, sample.use.form.columns(sample.floating).float() - rounded


def _scaled(sample: Sample, size: _Size) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs of which none is larger than 1, some rows at a time."""
    rounded, missing = _columns(sample)
    for start in range(0, rounded.shape[1], _ROWS):
        rows = slice(start, start + _ROWS)
        yield rounded[:, rows] / size.rounded[:, None], missing[:, rows] / size.missing[:, None]


@dataclass(frozen=True)
class _Size:
    """How large inputs are: powers of two that none is beyond, ``[groups, k]``; how many rows."""

    rounded: Tensor
    missing: Tensor
    count: int

    @classmethod
    def of(cls, rounded: Tensor, missing: Tensor) -> _Size:
        return cls(_power_above(rounded), _power_above(missing), rounded.shape[1])

    @classmethod
    def largest(cls, found: Iterable[_Size]) -> _Size:
        every = list(found)
        rounded, missing = (
            torch.stack([getattr(size, name) for size in every]).amax(0)
            for name in ("rounded", "missing")
        )
        return cls(rounded, missing, sum(size.count for size in every))

    def on_grid(self, product: Tensor) -> Tensor:
        """A product in float64, such that all sums of ``count`` such rows are exact."""
        step = 2.0 ** (self.count.bit_length() + 1 - 53)
        return product.double().div_(step).round_().mul_(step)


def _power_above(x: Tensor) -> Tensor:
    largest = x.abs().amax(1) if x.shape[1] else x.new_zeros(x.shape[0], x.shape[2])
    exponent = torch.frexp(largest).exponent.clamp(-60, 127)
    power = torch.ldexp(torch.ones_like(largest), exponent)
    return torch.where(torch.isfinite(power) & torch.isfinite(largest), power, 1.0)
