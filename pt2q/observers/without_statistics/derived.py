"""Observers whose parameters are computed from those of other observers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pt2q.errors import AnnotationError
from pt2q.numerics.rounding import round_trip
from pt2q.observers.base.uniform import UniformQuantizationObserverBase


class DerivedObserverOrFakeQuantize(UniformQuantizationObserverBase):
    """Parameters of a `DerivedQuantizationSpec`; needs no data of its own.

    Args:
        dtype: Type of the quantized values.
        obs_or_fqs: the observers that the parameters are derived from, in order.
        derive_qparams_fn: is given these; returns (scale, zero_point).
        fake_quant: also round what passes, for training.
        **kwargs: As `UniformQuantizationObserverBase`.
    """

    stateless = True

    def __init__(
        self,
        dtype: torch.dtype,
        obs_or_fqs: Sequence[Any],
        derive_qparams_fn: Callable[[list[Any]], tuple[Tensor, Tensor]],
        *,
        fake_quant: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(dtype=dtype, **kwargs)
        self.derive_qparams_fn = derive_qparams_fn
        self.fake_quant = fake_quant
        # A tuple, so that these are not registered a second time as submodules.
        self.obs_or_fqs = tuple(obs_or_fqs)

    def enable_fake_quant(self, enabled: bool = True) -> None:
        """Round, or let pass."""
        self.fake_quant = enabled

    @property
    def has_data(self) -> bool:
        """Whether all sources have seen data."""
        return all(bool(getattr(source, "has_data", True)) for source in self.obs_or_fqs)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Call the function on the sources.

        Returns:
            scale (float32) and zero_point (int64), scalar or of shape [C].

        Raises:
            AnnotationError: a scale is not finite and positive, or a zero point is none of the
                integers used.
        """
        scale, zero_point = self.derive_qparams_fn(list(self.obs_or_fqs))
        scale = torch.as_tensor(scale, dtype=torch.float32).detach()
        zero_point = torch.as_tensor(zero_point, dtype=torch.int64).detach()
        if not bool((torch.isfinite(scale) & (scale > 0)).all()):
            raise AnnotationError(
                f"derive_qparams_fn of {self.node_name or 'a derived spec'} must return finite, "
                f"positive scales, found {scale}"
            )
        self._check_zero_point(zero_point)
        return scale.reshape(-1), zero_point.reshape(-1)

    def _check_zero_point(self, zero_point: Tensor) -> None:
        low, high = self.quant_min, self.quant_max
        assert low is not None and high is not None
        outside = zero_point[(zero_point < low) | (zero_point > high)].reshape(-1)
        if outside.numel():
            raise AnnotationError(
                f"derive_qparams_fn of {self.node_name or 'a derived spec'} must return zero "
                f"points in [{low}, {high}], found {int(outside[0])}: no integer stands for 0"
            )

    def forward(self, x: Tensor) -> Tensor:
        """Give ``x`` back, rounded to the derived grid when training (straight-through)."""
        if not self.fake_quant or not self.has_data:
            return x
        scale, zero_point = self.calculate_qparams()
        low, high, axis = self.quant_min, self.quant_max, self.ch_axis
        assert low is not None and high is not None
        if axis is None:
            scale, zero_point = scale[0], zero_point[0]
        rounded = round_trip(x.detach(), scale, zero_point, low, high, self.dtype, axis)
        wide = x.float()
        return (wide + (rounded - wide).detach()).to(x.dtype)
