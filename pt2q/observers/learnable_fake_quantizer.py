"""Fake quantization whose parameters training learns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pt2q.errors import SpecError
from pt2q.ir.dtypes import is_symmetric
from pt2q.numerics.learned_step import learned_step
from pt2q.observers.fake_quantizer import FakeQuantize
from pt2q.observers.moving_average import MovingAverageMinMaxObserver


class LearnableFakeQuantize(FakeQuantize):
    """Fake-quantize with a scale, and for affine schemes a zero point, that training learns.

    Starts by observing: every call takes the parameters from the observed range, which is the
    initialization. `enable_param_learning`, or `enable_learning` with ``model.apply``, stops the
    observer and lets the optimizer move ``scale`` and ``zero_point``, which are Parameters from
    the beginning (per-channel ones have their shape once the module is in a prepared model). Give
    them no weight decay.

    Args:
        observer: finds the initial parameters.
        channels: the number of scales of a per-channel scheme, if it is known.
        **kwargs: as for `FakeQuantize`.

    Raises:
        SpecError: dynamic parameters cannot be learned.
    """

    def __init__(
        self, observer: Any = MovingAverageMinMaxObserver, channels: int = 1, **kwargs: Any
    ) -> None:
        super().__init__(observer, **kwargs)
        if self.is_dynamic:
            raise SpecError("LearnableFakeQuantize: parameters of a dynamic spec are not learned")
        self.set_channels(channels)

    def set_channels(self, channels: int) -> None:
        """Make room for that many scales; before the optimizer is made.

        Args:
            channels: the size of ``ch_axis``.
        """
        affine = not is_symmetric(self.qscheme)
        for name in ("scale", "zero_point"):
            self._buffers.pop(name, None)
            self._parameters.pop(name, None)
        self.register_parameter("scale", nn.Parameter(torch.ones(channels)))
        zeros = torch.zeros(channels)
        if affine:
            self.register_parameter("zero_point", nn.Parameter(zeros))
        else:
            self.register_buffer("zero_point", zeros)

    def enable_param_learning(self) -> None:
        """Stop observing; from now on the optimizer moves the parameters."""
        self.disable_observer()
        self.enable_fake_quant()

    def enable_static_estimate(self) -> None:
        """Take the parameters from the observed range at every call."""
        self.enable_observer()
        self.enable_fake_quant()

    @property
    def constant_input(self) -> bool:
        """Whether conversion may still look at a constant: not once parameters are learned."""
        return self._is_on()[0]

    def _set_qparams(self, scale: Tensor, zero_point: Tensor) -> None:
        if self.scale.numel() != scale.numel():
            raise SpecError(
                f"LearnableFakeQuantize on node '{self.node_name}': found {scale.numel()} channels "
                f"and has {self.scale.numel()} scales; call set_channels({scale.numel()}) before "
                "the optimizer is made"
            )
        self.scale.data.copy_(scale)
        self.zero_point.data.copy_(zero_point)
        self._ready = True

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        stored = state_dict.get(prefix + "scale")
        if stored is not None and stored.numel() != self.scale.numel():
            self.set_channels(stored.numel())
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _round(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.scale.clamp_(min=self.eps)
        low, high = self.quant_min, self.quant_max
        return learned_step(x, self.scale, self.zero_point, low, high, self.ch_axis)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Return the parameters in use, float32 and int64."""
        scale, _ = super().calculate_qparams()
        zero_point = self.zero_point.detach().round().clamp(self.quant_min, self.quant_max)
        return scale.clamp(min=self.eps), zero_point.to(torch.int64)
