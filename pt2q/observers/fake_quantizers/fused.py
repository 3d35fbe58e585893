"""Moving averages with the numbers of torch's fused operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pt2q.errors import SpecError
from pt2q.ir.dtypes import FLOAT8_DTYPES, is_symmetric
from pt2q.numerics.fused_step import (
    OPERATOR_FLOOR,
    affine_parameters,
    moving_average,
    moving_average_of_one,
    symmetric_step,
)
from pt2q.numerics.qparams import symmetric_zero_point
from pt2q.numerics.straight_through import Span, array_of
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
    def _observe(self, x: Tensor) -> Span | None:
        ends = self._ends_of(x)
        low, high = self._without_masks(x) if ends is None else ends
        if self.is_dynamic:
            self.activation_post_process.reset()
        if not self.activation_post_process.keep(low, high):
            self._follow(low, high)
        return ends

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
            self._follow(low.to(device), high.to(device))

    @torch.no_grad()
    def take_parameters(self) -> None:
        """See `FakeQuantize.take_parameters`; averaging a range with itself leaves it as it is."""
        observer = self.activation_post_process
        self._follow(observer.min_val, observer.max_val)

    def _follow(self, low: Tensor, high: Tensor) -> None:
        """Average the range, [] or [C], and choose parameters."""
        self._make_room(low)
        on_host = low.device.type == "cpu" and not torch.compiler.is_compiling()
        if not (on_host and self._follow_on_host(low, high)):
            self._follow_on_device(low, high)
        self._ready = True

    @np.errstate(over="ignore", invalid="ignore")
    def _follow_on_host(self, low: Tensor, high: Tensor) -> bool:
        """The operator's numbers without tensors; whether there are any."""
        if is_symmetric(self.qscheme):
            self._follow_in_arrays(low, high)
            return True
        return low.dim() == 0 and self._follow_in_numbers(float(low), float(high))

    def _follow_in_numbers(self, low: float, high: float) -> bool:
        observer = self.activation_post_process
        running, constant = (observer.min_val, observer.max_val), observer.averaging_constant
        least = moving_average_of_one(float(running[0]), low, constant)
        greatest = moving_average_of_one(float(running[1]), high, constant)
        found = affine_parameters(least, greatest, self.quant_min, self.quant_max)
        if found is None:
            return False
        running[0].fill_(least)
        running[1].fill_(greatest)
        self.scale.fill_(max(found[0], self.eps) if self._is_floored else found[0])
        self.zero_point.fill_(found[1])
        return True

    def _follow_in_arrays(self, low: Tensor, high: Tensor) -> None:
        observer = self.activation_post_process
        ends = []
        for running, new in ((observer.min_val, low), (observer.max_val, high)):
            array = array_of(running)
            array[:] = moving_average(array, array_of(new), observer.averaging_constant)
            ends.append(array)
        scale, middle = self._symmetric(*ends)
        array_of(self.scale)[:] = np.maximum(scale, self.eps) if self._is_floored else scale
        self.zero_point.fill_(middle)

    def _symmetric(self, low: Any, high: Any) -> tuple[Any, int]:
        """Scale, but for ``eps``, and zero point.

        Where a channel has one sign alone the operator forgets the symmetry and moves the zero
        point, which no backend accepts; here it stays in the middle.
        """
        middle = symmetric_zero_point(self.quant_min, self.quant_max, self.dtype)
        return symmetric_step(low, high, self.quant_min, self.quant_max), middle

    def _follow_on_device(self, low: Tensor, high: Tensor) -> None:
        """The same with no look at any number."""
        if not is_symmetric(self.qscheme):
            self._call_operator(torch.stack((low, high), -1))
        else:
            observer = self.activation_post_process
            for running, new in ((observer.min_val, low), (observer.max_val, high)):
                running.copy_(moving_average(running, new, observer.averaging_constant))
            scale, middle = self._symmetric(observer.min_val, observer.max_val)
            self.scale.copy_(scale)
            self.zero_point.fill_(middle)
        if self._is_floored:
            self.scale.clamp_(min=self.eps)

    @property
    def _is_floored(self) -> bool:
        """Whether ``eps`` says more than the operator does."""
        return self.eps > OPERATOR_FLOOR

    def _ends_of(self, x: Tensor) -> Span | None:
        """The smallest and the largest value of ``x``; None if there are masks, or may be."""
        if torch.compiler.is_compiling():  # looking would break the compiled graph
            return None
        ends = self.activation_post_process._ends_of(x)
        return None if ends is None else (ends[0].float(), ends[1].float())

    def _without_masks(self, x: Tensor) -> Span:
        """The range of ``x``, masks left out; where nothing is left, zero."""
        if torch.compiler.is_compiling():
            axes = [dim for dim in range(x.dim()) if dim != self._axis_of(x)]
            return x.amin(axes).float(), x.amax(axes).float()
        low, high = self.activation_post_process._range_of(x)
        return low.float().nan_to_num(posinf=0.0), high.float().nan_to_num(neginf=0.0)

    def _axis_of(self, x: Tensor) -> int | None:
        return None if self.ch_axis is None else self.ch_axis % x.dim()

    def _make_room(self, low: Tensor) -> None:
        observer, device, channels = self.activation_post_process, low.device, low.shape
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
