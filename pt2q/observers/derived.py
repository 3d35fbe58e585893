"""Observers whose parameters are computed from those of other observers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pt2q.errors import AnnotationError
from pt2q.numerics.quantization import fake_quantize
from pt2q.observers.standard import ObserverBase
from pt2q.spec.specs import DerivedQuantizationSpec


class DerivedObserver(ObserverBase):
    """Parameters of a `DerivedQuantizationSpec`; needs no data of its own.

    Args:
        spec: where the function, dtype and range come from.
        sources: the observers of ``spec.derived_from``, in order.
        fake_quant: also round what passes, for training.
    """

    per_channel = None
    needs_data = False

    def __init__(
        self, spec: DerivedQuantizationSpec, sources: list[Any], *, fake_quant: bool = False
    ) -> None:
        scheme = torch.per_tensor_affine if spec.qscheme is None else spec.qscheme
        super().__init__(
            dtype=spec.dtype,
            quant_min=spec.quant_min,
            quant_max=spec.quant_max,
            qscheme=scheme,
            ch_axis=spec.ch_axis,
            is_dynamic=spec.is_dynamic,
        )
        self.derive_qparams_fn = spec.derive_qparams_fn
        self.fake_quant = fake_quant
        # A tuple, so that the sources are not registered a second time as submodules.
        self.sources = tuple(sources)

    def _observe(self, x: Tensor) -> None:
        raise AssertionError("needs no data")

    @property
    def has_data(self) -> bool:
        """Whether all sources have seen data."""
        return all(bool(getattr(s, "has_data", True)) for s in self.sources)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Call the spec's function on the sources.

        Returns:
            scale (float32) and zero_point (int64), scalar or of shape [C].

        Raises:
            AnnotationError: the function's result is no pair of finite, positive scales.
        """
        scale, zero_point = self.derive_qparams_fn(list(self.sources))
        scale = torch.as_tensor(scale, dtype=torch.float32).detach()
        zero_point = torch.as_tensor(zero_point, dtype=torch.int64).detach()
        if not bool((torch.isfinite(scale) & (scale > 0)).all()):
            raise AnnotationError(
                f"derive_qparams_fn of {self.node_name or 'a derived spec'} must return finite, "
                f"positive scales, found {scale}"
            )
        return scale.reshape(-1), zero_point.reshape(-1)

    def forward(self, x: Tensor) -> Tensor:
        """Give ``x`` back, rounded to the derived grid when training (straight-through)."""
        if not self.fake_quant or not self.has_data:
            return x
        scale, zero_point = self.calculate_qparams()
        axis = self.ch_axis
        assert self.quant_min is not None and self.quant_max is not None
        if axis is None:
            scale, zero_point = scale[0], zero_point[0]
        rounded = fake_quantize(
            x.detach(), scale, zero_point, self.quant_min, self.quant_max, self.dtype, axis
        )
        return x + (rounded - x).detach()
