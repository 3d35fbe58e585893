"""Fake quantization whose parameters training learns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pt2q.errors import SpecError
from pt2q.ir.dtypes import INTEGER_DTYPES, STORED_AS, dtype_bounds, is_symmetric
from pt2q.numerics.learned_step import learned_step, lsq_factor
from pt2q.numerics.straight_through import Span
from pt2q.observers.fake_quantizers.fake_quantizer import FakeQuantize
from pt2q.observers.fake_quantizers.learning_switches import LearningSwitches
from pt2q.observers.min_max.moving_average import MovingAverageMinMaxObserver
from pt2q.spec.constructor import unwrapped


class LearnableFakeQuantize(LearningSwitches, FakeQuantize):
    """Fake-quantize with a scale, and for affine schemes a zero point, that training learns.

    Starts by observing: every call takes the parameters from the observed range, which is the
    initialization. `enable_range_learning`, by itself or with ``model.apply``, stops the observer
    and lets the optimizer move ``scale`` and ``zero_point``. Give them no weight decay.

    Both are Parameters from when their number is known: in a prepared model from the beginning;
    alone, from the first call, and None before, unless they are given here.

    Args:
        observer: finds the initial parameters.
        quant_min, quant_max: the integers used; where ``dtype`` is not given either, 0 and 255.
        scale, zero_point: the initial parameters, if they are known.
        channel_len: the number of scales of a per-channel scheme, if it is known; else -1.
        use_grad_scaling: multiply the gradients of the parameters by `lsq_factor`.
        **observer_kwargs: as for `FakeQuantize`. A ``dtype`` that does not hold the range is
            replaced by one that does.

    Attributes:
        learning_enabled, observer_enabled, fake_quant_enabled: 0 or 1.
        static_enabled: another name of ``observer_enabled``.

    Raises:
        SpecError: dynamic parameters cannot be learned.
    """

    eps: Tensor  # type: ignore[assignment]
    scale: Tensor
    zero_point: Tensor

    def __init__(
        self,
        observer: Any = MovingAverageMinMaxObserver,
        quant_min: int | None = None,
        quant_max: int | None = None,
        scale: float | None = None,
        zero_point: float | None = None,
        channel_len: int = -1,
        use_grad_scaling: bool = False,
        **observer_kwargs: Any,
    ) -> None:
        asked = observer_kwargs.pop("dtype", None) or unwrapped(observer)[1].get("dtype")
        dtype, low, high = _carrier(asked, quant_min, quant_max)
        super().__init__(observer, low, high, dtype=dtype, **observer_kwargs)
        if self.is_dynamic:
            raise SpecError("LearnableFakeQuantize: parameters of a dynamic spec are not learned")
        self.use_grad_scaling = use_grad_scaling
        smallest = torch.tensor([self.eps])
        del self.eps, self.scale, self.zero_point
        self.register_buffer("eps", smallest)
        self.register_parameter("scale", None)
        self.register_parameter("zero_point", None)
        if channel_len != -1 or scale is not None or zero_point is not None:
            self.set_channels(1 if channel_len == -1 else channel_len)
            nn.init.constant_(self.scale, 1.0 if scale is None else scale)
            nn.init.constant_(self.zero_point, zero_point or 0.0)
            self._ready = scale is not None

    def set_channels(self, channels: int) -> None:
        """Make the Parameters; before the optimizer is made.

        Args:
            channels: how many of each: the size of ``ch_axis``, or 1.
        """
        if channels < 1:
            raise SpecError(f"LearnableFakeQuantize: expected a number of scales, found {channels}")
        device = self.observer_enabled.device
        self.scale = nn.Parameter(torch.ones(channels, device=device))
        self.zero_point = nn.Parameter(torch.zeros(channels, device=device))
        self._let_learn()

    def _let_learn(self) -> None:
        """Give gradients to what is learned, once there is something."""
        if self.scale is None:
            return
        learning = bool(self.learning_enabled)
        self.scale.requires_grad_(learning)
        self.zero_point.requires_grad_(learning and not is_symmetric(self.qscheme))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` rounded to its grid; the first call observes, whatever is switched off."""
        if x.numel() > 0 and not self._is_on()[0] and not self.has_data:
            self._observe(x.detach())
        return super().forward(x)

    def _set_qparams(self, scale: Tensor, zero_point: Tensor) -> None:
        if self.scale is None:
            self.set_channels(scale.numel())
        if self.scale.numel() != scale.numel():
            raise SpecError(
                f"LearnableFakeQuantize on node '{self.node_name}': found {scale.numel()} channels "
                f"and has {self.scale.numel()} scales; call set_channels({scale.numel()}) before "
                "the optimizer is made"
            )
        self.scale.data.copy_(scale)
        self.zero_point.data.copy_(zero_point)
        self._ready = True

    def _round(self, x: Tensor, ends: Span | None = None) -> Tensor:
        with torch.no_grad():
            self.scale.clamp_(min=self.eps)
        low, high = self.quant_min, self.quant_max
        factor = lsq_factor(x, high) if self.use_grad_scaling else 1.0
        return learned_step(x, self.scale, self.zero_point, low, high, self.ch_axis, factor)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Return the parameters in use, float32 and int64."""
        scale, _ = super().calculate_qparams()
        zero_point = self.zero_point.detach().round().clamp(self.quant_min, self.quant_max)
        return scale.clamp(min=self.eps), zero_point.to(torch.int64)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        stored = state_dict.get(prefix + "scale")
        if stored is not None and (self.scale is None or stored.numel() != self.scale.numel()):
            self.set_channels(stored.numel())
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._let_learn()
        self._ready = bool(self.learning_enabled) or None


def _carrier(
    dtype: torch.dtype | None, low: int | None, high: int | None
) -> tuple[torch.dtype, int | None, int | None]:
    """The dtype and range meant: 0 to 255 if nothing is said, and a dtype that holds the range."""
    if dtype is None and low is None and high is None:
        low, high = 0, 255
    stored = torch.int8 if dtype is None else STORED_AS.get(dtype, dtype)
    for candidate in (stored, *INTEGER_DTYPES):
        if candidate not in INTEGER_DTYPES:
            break
        least, greatest = dtype_bounds(candidate)
        if (low is None or low >= least) and (high is None or high <= greatest):
            return candidate, low, high
    return stored, low, high
