"""A batch norm that reads the output of a convolution whose weight was scaled.

For ``y' = s * y`` with a factor ``s`` per channel, batch norm of ``y`` is batch norm of ``y'`` with
``eps * s ** 2`` for ``eps`` and ``|gamma|`` for ``gamma``. So training needs no division by ``s``,
no addition of the convolution's bias, which the batch mean takes out again, and keeps one tensor
for the backward pass where the plain form keeps three.

Registered as the operator ``pt2q::scaled_batch_norm``, so that it has a schema like any other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pt2q.ir import ops

# Above this ratio of squared mean and variance, a difference of two sums loses too much.
_FAR_FROM_ZERO = 16.0


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel.

    torch's own kernel for contiguous tensors is several times slower on a CPU.
    """
    axes = [0, *range(2, x.dim())]
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.compiler.is_compiling():
        var, mean = torch.var_mean(x, axes, correction=0)
        return mean, var
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        mean, var = torch.batch_norm_update_stats(x, None, None, 0.0)
        return mean, var
    return _from_sums(x) or _from_deviations(x, axes)


def _from_sums(x: Tensor) -> tuple[Tensor, Tensor] | None:
    """From sums of values and of squares, which make no tensor as large as ``x``.

    ``var = mean(x ** 2) - mean(x) ** 2`` has an error of ``1 + mean(x) ** 2 / var`` float32
    rounding steps; None where that is much.
    """
    rows = x.flatten(2) if x.dim() > 2 else x.t().unsqueeze(0)
    axis, count = (0, x.shape[0]) if x.dim() > 2 else (0, 1)
    mean = rows.mean(-1).mean(axis, dtype=torch.float64)
    squares = torch.linalg.vector_norm(rows, 2, -1).double().square_().sum(axis)
    var = squares.div_(rows.shape[-1] * count).sub_(mean.square())
    if not bool((mean.square() <= _FAR_FROM_ZERO * var).all()):
        return None
    return mean.float(), var.float()


def _from_deviations(x: Tensor, axes: list[int]) -> tuple[Tensor, Tensor]:
    mean = x.mean(axes)
    return mean, (x - _per_channel(mean, x)).square_().mean(axes)


def _per_channel(value: Tensor, x: Tensor) -> Tensor:
    return value.reshape(1, -1, *[1] * (x.dim() - 2))


class _Train(torch.autograd.Function):
    """Normalize with the statistics of the batch."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, factor: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        # Under autocast the layer's output is narrower than the parameters.
        mean, var = _statistics(x.to(weight.dtype))
        spread = torch.addcmul(var, factor, factor, value=eps)
        signed = weight * factor.sign()
        out, _, _ = torch.native_batch_norm(x, signed, bias, mean, spread, False, 0.0, 0.0)
        ctx.save_for_backward(x, factor, signed, mean, spread)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var)
        return out, mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Any, ...]:
        x, factor, signed, mean, spread = ctx.saved_tensors
        grad_x, grad_signed, grad_bias = ops.native_batch_norm_backward(
            grad, x, signed, None, None, mean, spread.rsqrt(), True, 0.0, [True, True, True]
        )
        # The factor's own share: d out / d (eps * s^2) = -out_centred / 2 / spread.
        grad_factor = (grad_signed * signed).mul_(factor).div_(spread).mul_(-ctx.eps)
        return grad_x, grad_factor, grad_signed.mul_(factor.sign()), grad_bias, None


def _update(running: Tensor, batch: Tensor, momentum: float) -> None:
    running.lerp_(batch.to(running.dtype), momentum)


def scaled_batch_norm(
    x: Tensor,
    factor: Tensor,
    own_bias: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """``batch_norm(x / factor + own_bias)``, per channel.

    Args:
        x: [N, C, ...].
        factor: ``s``, [C], without zeros.
        own_bias: the convolution's bias, [C].
        weight, bias: gamma and beta.
        running_mean, running_var: statistics of ``x / factor + own_bias``; updated in training.
        training: use the statistics of the batch.
        momentum: of the update.
        eps: added to the variance of ``x / factor``.
    """
    gamma = torch.ones_like(running_var) if weight is None else weight
    beta = torch.zeros_like(running_mean) if bias is None else bias
    if not training:
        gain = gamma * torch.rsqrt(running_var + eps)
        centre = running_mean if own_bias is None else running_mean - own_bias
        shift = beta - centre * gain
        return x * _per_channel(gain / factor, x) + _per_channel(shift, x)
    out: Tensor
    out, mean, var = _Train.apply(x, factor, gamma, beta, eps)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        count = x.numel() // x.shape[1]
        mean = mean / factor if own_bias is None else torch.addcdiv(own_bias, mean, factor)
        _update(running_mean, mean, momentum)
        var = var / factor.square().mul_(max(count - 1, 1) / count)
        _update(running_var, var, momentum)
    if own_bias is not None and own_bias.requires_grad:
        # It has a gradient, and that is zero: what data parallel training waits for.
        out = _touch(out, own_bias)
    return out


class _Touch(torch.autograd.Function):
    """The first input; the second gets a gradient of zeros."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, other: Tensor) -> Tensor:
        ctx.zeros = torch.zeros_like(other)
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, ctx.zeros


def _touch(x: Tensor, other: Tensor) -> Tensor:
    result: Tensor = _Touch.apply(x, other)  # type: ignore[no-untyped-call]
    return result


ops.library.impl("scaled_batch_norm", scaled_batch_norm, "CompositeImplicitAutograd")
