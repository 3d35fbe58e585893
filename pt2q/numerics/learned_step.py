"""Fake-quantization whose scale and zero point have gradients.

Esser et al. 2020, "Learned Step Size Quantization"; the zero point after Bhalgat et al. 2020,
"LSQ+".
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pt2q.numerics.broadcasting import shape_along


class _LearnedStep(torch.autograd.Function):
    """``(clamp(round(x / s) + z, low, high) - z) * s`` with gradients for ``x``, ``s`` and ``z``.

    With ``v = x / s`` and ``q`` the clamped integer (LSQ, equations 2 and 3, and LSQ+)::

        d/dx = 1 inside, 0 outside
        d/ds = q - z - v inside, q - z outside
        d/dz = 0 inside, -s outside
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, s: Tensor, z: Tensor, low: int, high: int) -> Tensor:
        # The operators of a converted graph multiply by the reciprocal, too.
        levels = x * (1.0 / s)
        q = levels.round().add_(z)
        inside = (q >= low) & (q <= high)
        q.clamp_(low, high).sub_(z)
        ctx.save_for_backward(q, levels, inside, s)
        return q * s

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        q, levels, inside, s = ctx.saved_tensors
        passed = grad * inside
        grad_s = (grad * q).sub_(passed * levels).sum_to_size(s.shape)
        grad_z = (passed - grad).mul_(s).sum_to_size(s.shape)
        return passed, grad_s, grad_z, None, None


class _ScaleGradient(torch.autograd.Function):
    """The input; its gradient times a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


def learned_step(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    ch_axis: int | None = None,
    grad_factor: float = 1.0,
) -> Tensor:
    """Fake-quantize with gradients for the parameters.

    Args:
        x: floating point numbers; narrow ones are computed in float32.
        scale: [1], or [C] with ``ch_axis``; positive.
        zero_point: of the same shape, a float; rounded here.
        quant_min, quant_max: the integers used.
        ch_axis: the axis the parameters run along, or None.
        grad_factor: the gradients of the parameters are multiplied by it; see `lsq_factor`.
    """
    shape = shape_along(ch_axis, x.dim())
    s = _ScaleGradient.apply(scale, grad_factor)  # type: ignore[no-untyped-call]
    z = _ScaleGradient.apply(zero_point, grad_factor)  # type: ignore[no-untyped-call]
    # The zero point in use is an integer of the range; its gradient passes straight through.
    whole = z + (z.detach().round().clamp(quant_min, quant_max) - z.detach())
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    result: Tensor = _LearnedStep.apply(  # type: ignore[no-untyped-call]
        wide, s.reshape(shape), whole.reshape(shape), quant_min, quant_max
    )
    return result.to(x.dtype)


def lsq_factor(x: Tensor, quant_max: int) -> float:
    """Return ``1 / sqrt(numbers * quant_max)``.

    With it, steps of scales and of weights are of like size (Esser et al. 2020, section 2.2).
    """
    return 1.0 / math.sqrt(x.numel() * max(quant_max, 1))
