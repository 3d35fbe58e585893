"""Moving averages with the numbers of torch's fused operator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pt2q.errors import SpecError
from pt2q.ir.dtypes import FLOAT8_DTYPES, is_symmetric
from pt2q.numerics.fused_step import OPERATOR_FLOOR, symmetric_step
from pt2q.numerics.qparams import symmetric_zero_point
from pt2q.observers.fake_quantizers.fake_quantizer import FakeQuantize
from pt2q.observers.min_max.moving_average import (
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    in_order,
)


class FusedMovingAvgObsFakeQuantize(FakeQuantize):
    """Moving average of the range, parameters and rounding, with the numbers of torch's operator.

    ``torch.fused_moving_avg_obs_fake_quant`` is shown the extremes of the tensor alone, which gives
    the same parameters as the tensor does, and `straight_through` rounds. The scale is at least
    ``eps``, which that operator does not know.

    Args:
        observer: `MovingAverageMinMaxObserver` or its per-channel form.
        **kwargs: as for `FakeQuantize`.

    Raises:
        SpecError: the observer keeps no moving average, or the dtype is not an integer.
    """

    activation_post_process: MovingAverageMinMaxObserver | MovingAveragePerChannelMinMaxObserver
    _on: Tensor

    def __init__(self, observer: Any = MovingAverageMinMaxObserver, **kwargs: Any) -> None:
        super().__init__(observer, **kwargs)
        found: object = self.activation_post_process
        moving = MovingAverageMinMaxObserver, MovingAveragePerChannelMinMaxObserver
        if not isinstance(found, moving) or self.dtype in FLOAT8_DTYPES:
            raise SpecError(
                f"FusedMovingAvgObsFakeQuantize: expected a moving-average observer of integers, "
                f"found {type(found).__name__} of {self.dtype}; use FakeQuantize"
            )
        self.register_buffer("_on", torch.ones(1, dtype=torch.int64), persistent=False)

    @property
    def constant_input(self) -> bool:
        """See `FakeQuantize.constant_input`; an average over steps is not moved by conversion."""
        return self._is_on()[0] and self.activation_post_process.averaging_constant == 1

    @torch.no_grad()
    def _observe(self, x: Tensor) -> None:
        low, high = self._extremes(x)
        extremes = torch.stack((low.float(), high.float()), -1)
        if self.is_dynamic:
            self.activation_post_process.reset()
        if not self.activation_post_process.keep(*extremes.unbind(-1)):
            self._follow(extremes)

    @torch.no_grad()
    def merge(self, found: Sequence[dict[str, Any]]) -> None:
        """See `ObserverBase.merge`: the batches in their order, with the operator's numbers."""
        entries = in_order(found)
        if not entries:
            super().merge(found)
            return
        self.at_batch(None)
        device = self.scale.device
        for _, low, high in entries:
            self._follow(torch.stack((low, high), -1).to(device))

    @torch.no_grad()
    def take_parameters(self) -> None:
        """See `FakeQuantize.take_parameters`; averaging a range with itself leaves it as it is."""
        observer = self.activation_post_process
        self._follow(torch.stack((observer.min_val, observer.max_val), -1))

    def _follow(self, extremes: Tensor) -> None:
        """Average the range, [2] or [C, 2], and choose parameters."""
        self._make_room(extremes)
        if is_symmetric(self.qscheme):
            self._follow_symmetric(extremes)
        else:
            self._call_operator(extremes)
        if self.eps > OPERATOR_FLOOR:
            self.scale.clamp_(min=self.eps)
        self._ready = True

    def _follow_symmetric(self, extremes: Tensor) -> None:
        """The operator's numbers in whole-vector arithmetic; it takes a microsecond per channel.

        Where a channel has one sign alone the operator forgets the symmetry and moves the zero
        point, which no backend accepts; here it stays in the middle.
        """
        observer = self.activation_post_process
        ranges = ((observer.min_val, extremes[..., 0]), (observer.max_val, extremes[..., 1]))
        for running, new in ranges:
            moved = running + observer.averaging_constant * (new - running)
            running.copy_(torch.where(running.isinf(), new, moved))
        scale = symmetric_step(observer.min_val, observer.max_val, self.quant_min, self.quant_max)
        self.scale.copy_(scale.reshape(self.scale.shape))
        middle = symmetric_zero_point(self.quant_min, self.quant_max, self.dtype)
        self.zero_point.fill_(middle)

    def _extremes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The range of ``x``, masks left out; where nothing is left, zero."""
        if torch.compiler.is_compiling():  # looking for masks would break the compiled graph
            axes = [dim for dim in range(x.dim()) if dim != self._axis_of(x)]
            return x.amin(axes), x.amax(axes)
        low, high = self.activation_post_process._range_of(x)
        if x.device.type == "cpu" and math.isfinite(float(low.sum() + high.sum())):
            return low, high
        return low.nan_to_num(posinf=0.0), high.nan_to_num(neginf=0.0)

    def _axis_of(self, x: Tensor) -> int | None:
        return None if self.ch_axis is None else self.ch_axis % x.dim()

    def _make_room(self, extremes: Tensor) -> None:
        observer, device = self.activation_post_process, extremes.device
        channels = extremes.shape[:-1]
        if observer.min_val.shape == channels and observer.min_val.device == device:
            return
        observer.min_val = observer.min_val.to(device).expand(channels).clone()
        observer.max_val = observer.max_val.to(device).expand(channels).clone()
        self.scale = torch.ones(channels or (1,), device=device)
        self.zero_point = torch.zeros(channels or (1,), dtype=torch.int32, device=device)

    def _call_operator(self, extremes: Tensor) -> None:
        observer = self.activation_post_process
        torch.fused_moving_avg_obs_fake_quant(
            extremes,
            self._on,
            self._on,
            observer.min_val,
            observer.max_val,
            self.scale,
            self.zero_point,
            observer.averaging_constant,
            self.quant_min,
            self.quant_max,
            0,
            extremes.dim() == 2,
            False,
        )
