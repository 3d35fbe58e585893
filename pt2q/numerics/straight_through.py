"""Fake-quantization with the straight-through gradient (Bengio et al. 2013, Jacob et al. 2018).

Forward, ``x -> (clamp(round(x / scale) + zero_point, quant_min, quant_max) - zero_point) * scale``;
backward, the gradient passes where nothing was clamped and is zero elsewhere. On a CPU both are
written as few in-place sweeps over the tensor, which is several times as fast as torch's fused
operators and gives the same bits; elsewhere, and under a compiler, those operators are called.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pt2q.ir import ops
from pt2q.numerics.broadcasting import shape_along

# Below this size, the calls cost more than the elements.
_FEW = 2048


def use_sweeps(x: Tensor) -> bool:
    """Whether the CPU form applies: float32, on a CPU, not being traced by a compiler."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling()


@lru_cache(maxsize=8192)
def _open_interval(inverse: float, low: float, high: float) -> tuple[float, float]:
    """The nearest float32 numbers that are clamped: the gradient passes strictly between them.

    ``round(x * inverse)`` grows with ``x``, also in float32, so each border is found by stepping
    from its estimate.
    """
    factor = np.float32(inverse)

    def first_outside(bound: float, direction: float) -> float:
        def clamped(x: Any) -> bool:
            return bool((np.rint(x * factor) - bound) * direction > 0)

        x = np.float32((bound + 0.5 * direction) / inverse)
        away, back = np.float32(np.inf * direction), np.float32(-np.inf * direction)
        while not clamped(x):
            x = np.nextafter(x, away)
        while clamped(inside := np.nextafter(x, back)):
            x = inside
        return float(x)

    return first_outside(low, -1.0), first_outside(high, 1.0)


class _PerTensor(torch.autograd.Function):
    """One scale. Keeps ``x``, which its producer or consumer mostly keeps anyway."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, low: float, high: float) -> Tensor:
        # The operators of a converted graph multiply by the reciprocal, too.
        inverse = float(np.float32(1.0) / np.float32(scale))
        ctx.save_for_backward(x)
        ctx.arguments = inverse, low, high
        return (x * inverse).round_().clamp_(low, high).mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (x,) = ctx.saved_tensors
        return ops.hardtanh_backward(grad, x, *_open_interval(*ctx.arguments)), None, None, None


class _Broadcast(torch.autograd.Function):
    """Scales (and bounds) of any shape that broadcasts: per channel, per group.

    Ranges of weights mostly hold all of the weight: then there is nothing to keep.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
        levels = (x * (1.0 / scale)).round_()
        if low.numel() > 1 or _leaves(levels, float(low), float(high)):
            ctx.save_for_backward((levels >= low) & (levels <= high))
        return levels.clamp_(low, high).mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        for inside in ctx.saved_tensors:
            grad = grad * inside
        return grad, None, None, None


def _leaves(levels: Tensor, low: float, high: float) -> bool:
    """Whether some level is outside of the bounds."""
    return float(levels.amin()) < low or float(levels.amax()) > high


def _bounds(
    zero_point: Tensor, quant_min: int, quant_max: int, shape: list[int]
) -> tuple[Tensor, Tensor]:
    """``quant_min - zero_point`` and ``quant_max - zero_point``, one of each if all are equal."""
    offset = zero_point.to(torch.float32)
    first = offset.reshape(-1)[:1]
    offset = first if bool((offset == first).all()) else offset.reshape(shape)
    return quant_min - offset, quant_max - offset


def _with_shape(
    x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int, shape: list[int]
) -> Tensor:
    bounds = _bounds(zero_point, low, high, shape)
    result: Tensor = _Broadcast.apply(  # type: ignore[no-untyped-call]
        x, scale.reshape(shape), *bounds
    )
    return result


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    ch_axis: int | None = None,
) -> Tensor:
    """Fake-quantize with a straight-through gradient for ``x``.

    Args:
        x: floating point numbers; what is not float32 is computed in float32.
        scale: float32, one number, or [C] with ``ch_axis``.
        zero_point: an integer tensor of the same shape.
        quant_min, quant_max: the integers used, at most 2**24 apart.
        ch_axis: the axis the parameters run along, or None.
    """
    if x.dtype != torch.float32:
        wide = fake_quantize(x.float(), scale, zero_point, quant_min, quant_max, ch_axis)
        return wide.to(x.dtype)
    if ch_axis is not None:
        return _per_channel(x, scale, zero_point, quant_min, quant_max, ch_axis)
    if not use_sweeps(x) or x.numel() < _FEW:
        zero = zero_point.to(torch.int32)
        return torch.fake_quantize_per_tensor_affine(x, scale, zero, quant_min, quant_max)
    offset = int(zero_point)
    result: Tensor = _PerTensor.apply(  # type: ignore[no-untyped-call]
        x, float(scale), float(quant_min - offset), float(quant_max - offset)
    )
    return result


def _per_channel(
    x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int, ch_axis: int
) -> Tensor:
    if not use_sweeps(x):
        zero = zero_point.to(torch.int32)
        return torch.fake_quantize_per_channel_affine(
            x, scale, zero, ch_axis % x.dim(), quant_min, quant_max
        )
    shape = shape_along(ch_axis, x.dim())
    return _with_shape(x, scale, zero_point, quant_min, quant_max, shape)


def fake_quantize_groups(
    x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int, group_size: int
) -> Tensor:
    """Fake-quantize with parameters per group of neighbours in the last dimension.

    Args:
        x: [rows, columns], columns a multiple of ``group_size``.
        scale, zero_point: [rows, columns / group_size].
        quant_min, quant_max: the integers used.
        group_size: how many neighbours share parameters.
    """
    grouped = x.float().unflatten(-1, (-1, group_size))
    shape = [*scale.shape, 1]
    result = _with_shape(grouped, scale, zero_point, quant_min, quant_max, shape)
    return result.flatten(-2).to(x.dtype)
