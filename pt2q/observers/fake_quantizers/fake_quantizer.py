"""Observe a tensor, then quantize and dequantize it.

The parameters in use are in buffers, so that a checkpoint says what the model computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pt2q.errors import SpecError
from pt2q.ir.dtypes import FLOAT8_DTYPES, is_per_channel
from pt2q.numerics.rounding import round_trip
from pt2q.numerics.straight_through import Span, fake_quantize
from pt2q.observers.base.resizing import make_room
from pt2q.observers.fake_quantizers.fake_quantizer_base import FakeQuantizeBase
from pt2q.observers.min_max.moving_average import MovingAverageMinMaxObserver
from pt2q.observers.protocol import SPEC_FIELDS
from pt2q.spec.constructor import accepted
from pt2q.spec.granularity import Granularity
from pt2q.spec.resolved_granularity import granularity_made_by, granularity_of

# The int32 range holds no more float32 integers than this, and a spec's float8 has its own steps.
_FLOAT_INTEGERS = 2**24


class FakeQuantize(FakeQuantizeBase):
    """Observe a tensor, then quantize and dequantize it.

    Args:
        observer: class of the observer that finds the parameters, or its ``with_args``.
        quant_min, quant_max: the integers used; the observer's default if not given.
        is_dynamic: each input gets parameters of its own.
        **observer_kwargs: for the observer (``dtype``, ``qscheme``, ``ch_axis``, ``eps``, ...).

    Attributes:
        scale, zero_point: the parameters in use: float32 and int32, [1] or [C].
        activation_post_process: the observer.
        owns_input: in training, what comes may be overwritten; None: nobody has said.
    """

    activation_post_process: Any
    dtype: torch.dtype
    quant_min: int
    quant_max: int
    qscheme: torch.qscheme
    ch_axis: int | None
    scale: Tensor
    zero_point: Tensor

    def __init__(
        self,
        observer: Any = MovingAverageMinMaxObserver,
        quant_min: int | None = None,
        quant_max: int | None = None,
        is_dynamic: bool = False,
        **observer_kwargs: Any,
    ) -> None:
        super().__init__()
        given: dict[str, Any] = {"quant_min": quant_min, "quant_max": quant_max}
        given["is_dynamic"] = is_dynamic
        given.update(observer_kwargs)
        self.activation_post_process = found = observer(**accepted(observer, given))
        for name in SPEC_FIELDS:
            said = getattr(found, name, None)
            setattr(self, name, given.get(name) if said is None else said)
        if self.quant_min is None or self.quant_max is None:
            raise SpecError(f"{type(self).__name__}: {self.dtype} is no type to quantize to")
        self.qscheme = torch.per_tensor_affine if self.qscheme is None else self.qscheme
        self.ch_axis = self.ch_axis if is_per_channel(self.qscheme) else None
        self.eps = float(getattr(found, "eps", 0.0))
        self.is_dynamic = is_dynamic
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("zero_point", torch.zeros(1, dtype=torch.int32))
        self._ready: bool | None = None
        self.owns_input: bool | None = None

    @classmethod
    def granularity_for(
        cls, observer: Any = MovingAverageMinMaxObserver, **arguments: Any
    ) -> Granularity:
        """The granularity of a fake quantizer made with these arguments: its observer's."""
        return granularity_made_by(observer, **arguments)

    @property
    def granularity(self) -> Granularity:
        """How much of the tensor shares a scale: as its observer."""
        return granularity_of(self.activation_post_process)

    @property
    def constant_input(self) -> bool:
        """Whether a constant is to be shown again before conversion: it still is observed."""
        return self._is_on()[0]

    @property
    def has_data(self) -> bool:
        """Whether there are parameters: something was observed."""
        if not self._ready:
            self._ready = super().has_data
        return self._ready

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Return the parameters in use, float32 and int64: those of the last training step."""
        if not self.has_data:
            self.activation_post_process.calculate_qparams()  # says who saw no data
        return self.scale.detach(), self.zero_point.detach().to(torch.int64)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` rounded to its grid, or ``x`` itself if that is switched off."""
        observing, rounding = self._is_on()
        if x.numel() == 0:
            return x
        ends = self._observe(x.detach()) if observing else None
        if not rounding or not (observing or self.has_data):
            return x
        return self._round(x, ends)

    @torch.no_grad()
    def _observe(self, x: Tensor) -> Span | None:
        """Take ``x`` into the statistics; its ends, if they are found on the way."""
        observer = self.activation_post_process
        if self.is_dynamic:
            observer.reset()
        observer(x)
        if not self.deferred:
            self.take_parameters()
        return None

    def at_batch(self, index: int | None) -> None:
        """See `ObserverBase.at_batch`; of use while nothing is rounded."""
        found = getattr(self.activation_post_process, "at_batch", None)
        if found is not None:
            found(index)

    def statistics(self) -> dict[str, Any]:
        """See `ObserverBase.statistics`: those of its observer."""
        found: dict[str, Any] = self.activation_post_process.statistics()
        return found

    def restore(self, statistics: dict[str, Any]) -> None:
        """See `ObserverBase.restore`."""
        self.activation_post_process.restore(statistics)
        self._ready = None
        if self.has_data:
            self.take_parameters()

    def merge(self, found: Sequence[dict[str, Any]]) -> None:
        """See `ObserverBase.merge`."""
        self.activation_post_process.merge(found)
        self._ready = None
        if self.has_data:
            self.take_parameters()

    @property
    def merges(self) -> bool:
        """See `ObserverBase.merges`."""
        return bool(getattr(self.activation_post_process, "merges", False))

    @property
    def deferred(self) -> bool:
        """See `ObserverBase.deferred`."""
        return bool(getattr(self.activation_post_process, "deferred", False))

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

    def _round(self, x: Tensor, ends: Span | None = None) -> Tensor:
        low, high, axis = self.quant_min, self.quant_max, self.ch_axis
        if self.dtype in FLOAT8_DTYPES or high - low > _FLOAT_INTEGERS:
            scale, zero = (self.scale, self.zero_point) if axis is not None else self._scalars()
            rounded = round_trip(x.detach(), scale, zero, low, high, self.dtype, axis)
            return x + (rounded.to(x.dtype) - x).detach()
        owned = bool(self.owns_input)
        return fake_quantize(x, self.scale, self.zero_point, low, high, axis, ends, owned)

    def _scalars(self) -> tuple[Tensor, Tensor]:
        return self.scale.reshape(()), self.zero_point.reshape(())

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        make_room(self, state_dict, prefix, ("scale", "zero_point"))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._ready = None
