"""Fake-quantization with the straight-through gradient (Bengio et al. 2013, Jacob et al. 2018).

Forward, ``x -> (clamp(round(x / scale) + zero_point, quant_min, quant_max) - zero_point) * scale``;
backward, the gradient passes where nothing was clamped and is zero elsewhere. On a CPU both are
written as few in-place sweeps over the tensor, which is several times as fast as torch's fused
operators and gives the same bits; elsewhere, and under a compiler, those operators are called.
Where the smallest and the largest value show that nothing is clamped, nothing is kept for the
backward pass, and the gradient is handed on as it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pt2q.ir import ops
from pt2q.ir.saved_tensors import describe
from pt2q.numerics.broadcasting import shape_along
from pt2q.numerics.extremes import extremes
from pt2q.numerics.rounded_form import rounded_form

Span = tuple[Tensor, Tensor]
"""The smallest and the largest value, of a tensor or of each of its channels."""

# Below this size, the calls cost more than the elements.
_FEW = 2048


def use_sweeps(x: Tensor) -> bool:
    """Whether the CPU form applies: float32, on a CPU, not being traced by a compiler."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling()


class _Within(torch.autograd.Function):
    """Nothing is clamped, so the gradient passes everywhere and nothing is kept for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, inverse: float | Tensor, scale: float | Tensor) -> Tensor:
        return (x * inverse).round_().mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return grad, None, None


class _WithinInPlace(_Within):
    """The same, written over ``x``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, inverse: float | Tensor, scale: float | Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x.mul_(inverse).round_().mul_(scale)


class _PerTensor(torch.autograd.Function):
    """One scale. Keeps one byte an element: the sign of what was taken away."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, inverse: float, scale: float, *bounds: float) -> Tensor:
        levels = (x * inverse).round_()
        clamped = levels.clamp(*bounds)
        ctx.save_for_backward(levels.sub_(clamped).sign_().to(torch.int8))
        return clamped.mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (excess,) = ctx.saved_tensors
        passed = ops.hardtanh_backward(grad, excess.to(grad.dtype), -1.0, 1.0)
        return passed, None, None, None, None


class _Broadcast(torch.autograd.Function):
    """Scales (and bounds) of any shape that broadcasts: per channel, per group."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, inverse: Tensor, scale: Tensor, low: Any, high: Any) -> Tensor:
        levels = (x * inverse).round_()
        ctx.save_for_backward((levels >= low) & (levels <= high))
        return levels.clamp_(low, high).mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (inside,) = ctx.saved_tensors
        return grad * inside, None, None, None, None


def _one_scale(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    limits: tuple[int, int],
    span: Span | None,
    within: Any,
) -> Tensor:
    """The form in sweeps, with numbers for parameters."""
    step, zero = float(scale), int(zero_point)
    low, high = float(limits[0] - zero), float(limits[1] - zero)
    # The operators of a converted graph multiply by the reciprocal, too.
    inverse = float(np.float32(1.0) / np.float32(step))
    if span is None and _wants_gradient(x):
        span = extremes(x.detach(), ())
    if span is not None:
        # Rounding keeps the order, so the ends tell whether anything is clamped.
        least, greatest = (np.rint(np.float32(float(end)) * np.float32(inverse)) for end in span)
        if least >= low and greatest <= high:
            return _applied(within, x, inverse, step, low, high)
    return _applied(_PerTensor, x, inverse, step, low, high)


def _wants_gradient(x: Tensor) -> bool:
    """Whether it pays to know whether anything is clamped; else, clamping costs less."""
    return torch.is_grad_enabled() and x.requires_grad


def _many_scales(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    limits: tuple[int, int],
    shape: list[int],
    span: Span | None,
    within: Any,
) -> Tensor:
    """The form in sweeps, with parameters of a shape that broadcasts."""
    low, high = _bounds(zero_point.detach(), *limits, shape)
    step = scale.detach().reshape(shape)
    inverse = step.reciprocal()
    if span is None and _wants_gradient(x) and use_sweeps(x):
        span = extremes(x.detach(), tuple(dim for dim, size in enumerate(shape) if size == 1))
    if span is not None and _is_within(span, inverse, low, high):
        return _applied(within, x, inverse, step, low, high)
    return _applied(_Broadcast, x, inverse, step, low, high)


def _is_within(span: Span, inverse: Tensor, low: Any, high: Any) -> bool:
    """Whether nothing is clamped in any channel."""
    least, greatest = (np.rint(array_of(end) * array_of(inverse)) for end in span)
    if isinstance(low, Tensor):
        return bool((least >= array_of(low)).all() and (greatest <= array_of(high)).all())
    return bool(least.min() >= low and greatest.max() <= high)


def array_of(tensor: Tensor) -> Any:
    """The numbers of a tensor on the host, in one dimension; writing into it writes the tensor."""
    return tensor.numpy().reshape(-1)


def _bounds(
    zero_point: Tensor, quant_min: int, quant_max: int, shape: list[int]
) -> tuple[float | Tensor, float | Tensor]:
    """``quant_min - zero_point`` and ``quant_max - zero_point``; numbers where all are equal.

    Clamping between numbers is ten times as fast as between tensors.
    """
    zeros = array_of(zero_point.cpu())
    first = int(zeros[0])
    if (zeros == first).all():
        return float(quant_min - first), float(quant_max - first)
    offset = zero_point.to(torch.float32).reshape(shape)
    return quant_min - offset, quant_max - offset


def _is_one_more(x: Tensor, scale: Any) -> bool:
    """Whether a rounded tensor is kept beside what a float step keeps, and not in its place.

    So it is with weights, and with what its maker keeps as well: the output of a ReLU. Elsewhere
    it would take time to keep less than the float step does.
    """
    made_by = x.grad_fn
    if isinstance(scale, Tensor) or made_by is None:
        return True
    return made_by.name() in ("ReluBackward0", "MulBackward0")


def _applied(function: Any, x: Tensor, inverse: Any, scale: Any, low: Any, high: Any) -> Tensor:
    """The rounded tensor, of which is said how it can be kept in few bytes."""
    bounds = () if issubclass(function, _Within) else (low, high)
    result: Tensor = function.apply(x, inverse, scale, *bounds)
    if not isinstance(low, Tensor) and _is_one_more(x, scale):
        describe(result, lambda: rounded_form(inverse, scale, low, high))
    return result


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    ch_axis: int | None = None,
    span: Span | None = None,
    owned: bool = False,
) -> Tensor:
    """Fake-quantize with a straight-through gradient for ``x``.

    Args:
        x: floating point numbers; what is not float32 is computed in float32.
        scale: float32, one number, or [C] with ``ch_axis``.
        zero_point: an integer tensor of the same shape.
        quant_min, quant_max: the integers used, at most 2**24 apart.
        ch_axis: the axis the parameters run along, or None.
        span: the ends of ``x``, of the shape of ``scale``, where they are known; it saves a look.
        owned: where a gradient is wanted, ``x`` may be overwritten: nothing else needs it.
    """
    if x.dtype != torch.float32:
        wide = fake_quantize(
            x.float(), scale, zero_point, quant_min, quant_max, ch_axis, span, owned
        )
        return wide.to(x.dtype)
    few = ch_axis is None and x.numel() < _FEW
    if few or not use_sweeps(x):
        return _by_operator(x, scale, zero_point, quant_min, quant_max, ch_axis)
    limits = quant_min, quant_max
    in_place = owned and _wants_gradient(x) and not x.is_leaf
    within = _WithinInPlace if in_place else _Within
    if ch_axis is None:
        return _one_scale(x, scale, zero_point, limits, span, within)
    return _many_scales(x, scale, zero_point, limits, shape_along(ch_axis, x.dim()), span, within)


def _by_operator(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    ch_axis: int | None,
) -> Tensor:
    zero = zero_point.to(torch.int32)
    if ch_axis is None:
        return torch.fake_quantize_per_tensor_affine(x, scale, zero, quant_min, quant_max)
    axis = ch_axis % x.dim()
    return torch.fake_quantize_per_channel_affine(x, scale, zero, axis, quant_min, quant_max)


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
    result = _many_scales(grouped, scale, zero_point, (quant_min, quant_max), shape, None, _Within)
    return result.flatten(-2).to(x.dtype)
