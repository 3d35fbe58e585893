"""Fake quantizers: observers that round what passes, with a gradient, for training.

Each has the interface of an observer (`pt2q.observers.ObserverBase`) and keeps the parameters in
use in buffers, so that a checkpoint says what the model computes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from pt2q.errors import SpecError
from pt2q.numerics import straight_through
from pt2q.numerics.quantization import (
    FLOAT8_DTYPES,
    is_per_channel,
    is_symmetric,
    symmetric_zero_point,
)
from pt2q.numerics.quantization import fake_quantize as round_trip
from pt2q.observers.derived import DerivedObserver
from pt2q.observers.standard import (
    FixedQParamsObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    ObserverBase,
    ObserverConstructor,
)

# The int32 range holds no more float32 integers than this, and a spec's float8 has its own steps.
_FLOAT_INTEGERS = 2**24
# Below this, torch's operator keeps scales by itself.
_SMALLEST_STEP = 6.1e-5
_OPERATOR_FLOOR = _SMALLEST_STEP / 2


class FakeQuantize(nn.Module):
    """Observe a tensor, then quantize and dequantize it.

    Args:
        observer: class of the observer that finds the parameters, or its ``with_args``.
        quant_min, quant_max: the integers used; the observer's default if not given.
        is_dynamic: each input gets parameters of its own.
        **observer_kwargs: for the observer (``dtype``, ``qscheme``, ``ch_axis``, ``eps``, ...).

    Attributes:
        scale, zero_point: the parameters in use: float32 and int32, [1] or [C].
        fake_quant_enabled, observer_enabled: 0 or 1; change them with the methods of the same
            name, or with `enable_fake_quant` and its kin.
        activation_post_process: the observer.
    """

    activation_post_process: Any
    scale: Tensor
    zero_point: Tensor
    fake_quant_enabled: Tensor
    observer_enabled: Tensor

    def __init__(
        self,
        observer: Any = MovingAverageMinMaxObserver,
        quant_min: int | None = None,
        quant_max: int | None = None,
        is_dynamic: bool = False,
        **observer_kwargs: Any,
    ) -> None:
        super().__init__()
        self.activation_post_process = observer(
            quant_min=quant_min, quant_max=quant_max, is_dynamic=is_dynamic, **observer_kwargs
        )
        found = self.activation_post_process
        if found.quant_min is None or found.quant_max is None:
            raise SpecError(f"{type(self).__name__}: {found.dtype} is no type to quantize to")
        self.dtype, self.qscheme, self.eps = found.dtype, found.qscheme, found.eps
        self.quant_min, self.quant_max = found.quant_min, found.quant_max
        self.ch_axis = found.ch_axis if is_per_channel(found.qscheme) else None
        self.is_dynamic = is_dynamic
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("zero_point", torch.zeros(1, dtype=torch.int32))
        self.register_buffer("fake_quant_enabled", torch.ones(1, dtype=torch.int64))
        self.register_buffer("observer_enabled", torch.ones(1, dtype=torch.int64))
        # What the buffers say, without asking a device: (observing, rounding).
        self._switches = (True, True)
        self._ready: bool | None = None

    @classmethod
    def with_args(cls, **kwargs: Any) -> ObserverConstructor:
        """Return a constructor of this class with some arguments filled in."""
        return ObserverConstructor(cls).with_args(**kwargs)

    # -------------------------------------------------------------- what observers have

    @property
    def node_name(self) -> str:
        """The node whose output is watched, for messages."""
        return str(self.activation_post_process.node_name)

    @node_name.setter
    def node_name(self, name: str) -> None:
        self.activation_post_process.node_name = name

    @property
    def has_data(self) -> bool:
        """Whether there are parameters: something was observed."""
        if self._ready is None or not self._ready:
            self._ready = bool(self.activation_post_process.has_data)
        return self._ready

    @property
    def constant_input(self) -> bool:
        """Whether a constant is to be shown again before conversion: it still is observed."""
        return self._is_on()[0]

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Return the parameters in use, float32 and int64: those of the last training step."""
        if not self.has_data:
            self.activation_post_process.calculate_qparams()  # says who saw no data
        return self.scale.detach(), self.zero_point.detach().to(torch.int64)

    # -------------------------------------------------------------- switches

    def _is_on(self) -> tuple[bool, bool]:
        """(observing, rounding)."""
        return self._switches

    def enable_fake_quant(self, enabled: bool = True) -> None:
        """Round, or let pass."""
        self.fake_quant_enabled.fill_(int(enabled))
        self._switches = (self._switches[0], enabled)

    def disable_fake_quant(self) -> None:
        """Let pass what comes."""
        self.enable_fake_quant(False)

    def enable_observer(self, enabled: bool = True) -> None:
        """Follow the range, or keep the parameters as they are."""
        self.observer_enabled.fill_(int(enabled))
        self._switches = (enabled, self._switches[1])

    def disable_observer(self) -> None:
        """Keep the parameters as they are."""
        self.enable_observer(False)

    # -------------------------------------------------------------- work

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` rounded to its grid, or ``x`` itself if that is switched off."""
        observing, rounding = self._is_on()
        if x.numel() == 0:
            return x
        if observing:
            self._observe(x.detach())
        if not rounding or not (observing or self.has_data):
            return x
        return self._round(x)

    @torch.no_grad()
    def _observe(self, x: Tensor) -> None:
        observer = self.activation_post_process
        if self.is_dynamic:
            observer.reset()
        observer(x)
        self.take_parameters()

    def take_parameters(self) -> None:
        """Take the parameters from the observer's range as it is."""
        self._set_qparams(*self.activation_post_process.calculate_qparams())

    def _set_qparams(self, scale: Tensor, zero_point: Tensor) -> None:
        if self.scale.shape != scale.shape or self.scale.device != scale.device:
            self.scale = torch.empty_like(scale)
            self.zero_point = torch.empty_like(zero_point, dtype=torch.int32)
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)
        self._ready = True

    def _round(self, x: Tensor) -> Tensor:
        low, high, axis = self.quant_min, self.quant_max, self.ch_axis
        if self.dtype in FLOAT8_DTYPES or high - low > _FLOAT_INTEGERS:
            scale, zero = (self.scale, self.zero_point) if axis is not None else self._scalars()
            rounded = round_trip(x.detach(), scale, zero, low, high, self.dtype, axis)
            return x + (rounded.to(x.dtype) - x).detach()
        return straight_through.fake_quantize(x, self.scale, self.zero_point, low, high, axis)

    def _scalars(self) -> tuple[Tensor, Tensor]:
        return self.scale.reshape(()), self.zero_point.reshape(())

    # -------------------------------------------------------------- persistence

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        for name in ("scale", "zero_point"):
            stored, own = state_dict.get(prefix + name), getattr(self, name)
            if stored is not None and stored.shape != own.shape:
                self._buffers[name] = own.new_empty(stored.shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._switches = bool(self.observer_enabled), bool(self.fake_quant_enabled)
        self._ready = None

    def extra_repr(self) -> str:
        """Return the state, for ``repr``."""
        observing, rounding = self._is_on()
        return f"fake_quant_enabled={rounding}, observer_enabled={observing}"


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
        extremes = torch.stack(self._extremes(x), -1)
        if self.is_dynamic:
            self.activation_post_process.reset()
        self._follow(extremes)

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
        if self.eps > _OPERATOR_FLOOR:
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
            return x.amin(axes).float(), x.amax(axes).float()
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


def symmetric_step(low: Tensor, high: Tensor, quant_min: int, quant_max: int) -> Tensor:
    """The scale with which ``torch.fused_moving_avg_obs_fake_quant`` covers a symmetric range.

    With ``m = (quant_max - quant_min) // 2``, the magnitude of one step is
    ``max(-low / (m + 1), high / m)``, of which ``2 m + 1`` steps are spread over
    ``quant_max - quant_min``; at least 6.1e-5, and 0.1 for a range of zero.

    Args:
        low, high: the range; zero is added to it.
        quant_min, quant_max: the integers used.
    """
    half, steps = (quant_max - quant_min) // 2, quant_max - quant_min
    below, above = -low.clamp(max=0.0) / (half + 1), high.clamp(min=0.0) / half
    largest = torch.maximum(below, above).double()
    span = (largest * half).float().double() - (largest * -(half + 1)).float().double()
    step = (span / steps).float()
    return torch.where(step == 0.0, 0.1, step.clamp(min=_SMALLEST_STEP))


class FixedQParamsFakeQuantize(FakeQuantize):
    """Fake-quantize with parameters known beforehand.

    Args:
        observer: class of an observer that gives fixed parameters.
        **observer_kwargs: for the observer (``scale``, ``zero_point``, ``dtype``, ...).
    """

    def __init__(self, observer: Any = FixedQParamsObserver, **observer_kwargs: Any) -> None:
        super().__init__(observer, **observer_kwargs)
        self._set_qparams(*self.activation_post_process.calculate_qparams())

    def _observe(self, x: Tensor) -> None:
        """Take no notice: the parameters are fixed."""


def _switch(module: nn.Module, method: str, enabled: bool) -> None:
    switch = getattr(module, method, None)
    if callable(switch):
        switch(enabled)


def enable_observer(module: nn.Module, enabled: bool = True) -> None:
    """Let observers and fake quantizers follow ranges; for ``model.apply(enable_observer)``."""
    if isinstance(module, ObserverBase):
        module.observer_enabled = enabled
    else:
        _switch(module, "enable_observer", enabled)


def disable_observer(module: nn.Module) -> None:
    """Keep ranges and parameters as they are; for ``model.apply(disable_observer)``."""
    enable_observer(module, False)


def enable_fake_quant(module: nn.Module, enabled: bool = True) -> None:
    """Let fake quantizers round; for ``model.apply(enable_fake_quant)``."""
    if isinstance(module, DerivedObserver):
        module.fake_quant = enabled
    else:
        _switch(module, "enable_fake_quant", enabled)


def disable_fake_quant(module: nn.Module) -> None:
    """Let fake quantizers pass what comes; for ``model.apply(disable_fake_quant)``."""
    enable_fake_quant(module, False)
