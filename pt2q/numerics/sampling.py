"""What is taken of a tensor for a histogram, at little cost.

Counting every value costs more than a fast layer. What is taken of a tensor of more than
``WHOLE`` elements is

* samples: one from each stratum of ``stratum_of(n)`` neighbours, at a random place in it. A regular
  stride would meet the same channel again and again;
* extremes: the smallest and the largest value of each block of ``BLOCK`` elements. A block takes
  every so-many-th element of the tensor, so that neighbours fall into different blocks.

Samples alone lose the tails, which decide where to clip; extremes alone know nothing else. With a
fraction ``f`` of ``b`` blocks whose maximum is beyond ``t``, about ``-b * log(1 - f)`` values are
beyond ``t``; :func:`tail_counts` weighs this with the samples by their variances.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

WHOLE = 16384
BLOCK = 255
_PHASES = 4
# Reduced at once in a first step: a few long rows take a third of the time of many short ones.
_WIDE = 16
_FEWEST_SAMPLES = 4096
_WIDEST_STRATUM = 128


def stratum_of(size: int) -> int:
    """Return how many elements one sample of a tensor of ``size`` elements stands for."""
    return min(size // _FEWEST_SAMPLES, _WIDEST_STRATUM)


@lru_cache(maxsize=256)
def sample_positions(size: int, phase: int, device: torch.device) -> Tensor:
    """Return one random position in each stratum, ``[size // stratum_of(size)]``."""
    stratum = stratum_of(size)
    generator = torch.Generator().manual_seed(size * _PHASES + phase)
    strata = size // stratum
    jitter = torch.randint(0, stratum, (strata,), generator=generator)
    return (torch.arange(strata) * stratum + jitter).to(torch.int32).to(device, non_blocking=True)


def samples_of(flat: Tensor, call: int) -> Tensor:
    """Return the samples of a flat tensor; successive calls look at different places."""
    positions = sample_positions(flat.shape[0], call % _PHASES, flat.device)
    return flat.index_select(0, positions)


def flattened(x: Tensor) -> Tensor:
    """Return the elements of ``x`` in some order as ``[n]``, without a copy where that can be."""
    if x.is_contiguous():
        return x.view(-1)
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size != 1 and stride != expected:
            return x.reshape(-1)
        expected *= size
    return x.as_strided((expected,), (1,))


@lru_cache(maxsize=4096)
def blocks_of(size: int) -> int:
    """Return the number of blocks of a large tensor: the largest prime up to ``size / BLOCK``.

    A prime shares no factor with the width of a channel axis; else a block would hold few channels
    over and over, and an outlier channel would show in few blocks.
    """
    blocks = max(size // BLOCK, 2)
    while any(blocks % factor == 0 for factor in range(2, math.isqrt(blocks) + 1)):
        blocks -= 1
    return blocks


def extremes_of(flat: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest value of each block.

    Of ``b`` blocks the ``i``-th holds the elements ``i``, ``i + b``, ``i + 2 * b`` and so on.
    """
    blocks = blocks_of(flat.shape[0])
    return (
        _by_block(flat, blocks, torch.amin, torch.minimum),
        _by_block(flat, blocks, torch.amax, torch.maximum),
    )


def _by_block(
    flat: Tensor, blocks: int, extreme: Callable[..., Tensor], of_two: Callable[..., Tensor]
) -> Tensor:
    """Return an extreme of each block: first of wide rows, which is fast, then of what is left."""
    wide = flat.shape[0] // (blocks * _WIDE)
    body = _WIDE * wide * blocks
    found = extreme(flat[:body].view(_WIDE, -1), 0)
    found = extreme(found.view(wide, blocks), 0)
    rows = (flat.shape[0] - body) // blocks
    if rows > 0:
        whole = flat[body : body + rows * blocks].view(rows, blocks)
        found = of_two(found, extreme(whole, 0))
    rest = flat[body + rows * blocks :]
    if rest.shape[0] > 0:
        first = found[: rest.shape[0]]
        of_two(first, rest, out=first)
    return found


@dataclass
class Summary:
    """What is taken of one tensor: ``values``, each standing for ``weight`` elements."""

    values: Tensor
    weight: int
    low: Tensor
    high: Tensor
    minima: Tensor | None = None
    maxima: Tensor | None = None


def summarise(flat: Tensor, call: int) -> Summary:
    """Return all of a small flat tensor, or samples and block extremes of a large one."""
    if flat.shape[0] <= WHOLE:
        low, high = torch.aminmax(flat)
        return Summary(flat, 1, low, high)
    minima, maxima = extremes_of(flat)
    values = samples_of(flat, call)
    return Summary(values, stratum_of(flat.shape[0]), minima.amin(), maxima.amax(), minima, maxima)


def tail_counts(sampled: Tensor, extremes: Tensor, fraction: Tensor, blocks: Tensor) -> Tensor:
    """Return the counts in bins on one side of zero, tails restored from block extremes.

    Args:
        sampled: ``[N, half]`` counts estimated from samples, by falling magnitude.
        extremes: ``[N, half]`` counts of block extremes on this side.
        fraction: ``[N, 1]`` samples taken for each element they stand for.
        blocks: ``[N, 1]`` number of blocks, at least 1.
    """
    beyond, occupied = sampled.cumsum(1), extremes.cumsum(1)
    # Where all blocks have a value beyond a level, they tell no more than the samples.
    told = int((occupied < blocks).any(0).sum())
    share, from_blocks = _told_by_blocks(
        beyond[:, :told], occupied[:, :told], 1 / fraction, blocks.to(sampled.dtype)
    )
    beyond[:, :told].lerp_(from_blocks, share)
    # A count of values beyond a level can only grow toward zero.
    combined = beyond.cummax(1).values
    return combined.diff(dim=1, prepend=torch.zeros_like(combined[:, :1]))


def _told_by_blocks(
    beyond: Tensor, occupied: Tensor, weight: Tensor, blocks: Tensor
) -> tuple[Tensor, Tensor]:
    """Return how far to believe the blocks and how many values they say lie beyond each level.

    Values beyond a level, thrown into blocks at random, leave blocks empty like a Poisson law.
    """
    part = occupied / blocks
    full = part >= 1
    part.masked_fill_(full, 0)
    from_blocks = torch.log1p(-part).mul_(-blocks)
    # b * (exp(m) - 1 - m) with m = -log(1 - f).
    block_variance = part.div_(1 - part).mul_(blocks).sub_(from_blocks).add_(1e-3)
    sample_variance = torch.maximum(from_blocks, weight).mul_(weight - 1).add_(1e-3)
    # Values that cluster in few blocks: the samples contradict the blocks beyond doubt.
    excess = (beyond - from_blocks).square_().sub_(sample_variance, alpha=16).clamp_(min=0)
    share = sample_variance / block_variance.add_(excess).add_(sample_variance)
    return share.masked_fill_(full, 0), from_blocks
