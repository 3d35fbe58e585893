"""Observers of evenly spaced integers: what their range, scheme and axis mean."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pt2q.errors import IntegerRangeError
from pt2q.ir.dtypes import CAST_DTYPES, dtype_bounds, is_per_channel, is_quantized_dtype
from pt2q.numerics.qparams import DEFAULT_EPS, choose_qparams
from pt2q.observers.base.observer_base import ObserverBase
from pt2q.spec.checks import check_symmetric
from pt2q.spec.granularity import Granularity
from pt2q.spec.resolved_granularity import granularity_from


class UniformQuantizationObserverBase(ObserverBase):
    """Base of observers for evenly spaced integers: their range, the scheme and the axis.

    Args:
        dtype: Type of the quantized values, or float16 / bfloat16 for a mere conversion.
        quant_min: Smallest integer in use; the smallest of ``dtype`` if not given.
        quant_max: Largest integer in use; the largest of ``dtype`` if not given.
        qscheme: Per tensor or per channel, affine or symmetric; the class's own if ``None``.
        ch_axis: Channel axis of a per-channel scheme, 0 if not given.
        is_dynamic: The parameters are found at run time; here it is only carried along.
        eps: Smallest scale.
        reduce_range: Use half of ``dtype``, where no range is given.
        factory_kwargs: ``device`` and ``dtype`` of the buffers.

    Raises:
        TypeError: ``dtype`` cannot be quantized to.
        ValueError: the range does not fit ``dtype``, or the scheme does not fit the class.
    """

    default_qscheme: torch.qscheme = torch.per_tensor_affine
    per_channel: bool | None = None
    """Whether the class takes per-channel schemes alone, per-tensor ones alone, or (None) both."""
    eps: Tensor
    _version = 3  # of the state: with ``eps``, ``min_val`` and ``max_val`` under these names

    qscheme: torch.qscheme

    def __init__(
        self,
        *,
        dtype: torch.dtype = torch.int8,
        quant_min: int | None = None,
        quant_max: int | None = None,
        qscheme: torch.qscheme | None = None,
        ch_axis: int | None = None,
        is_dynamic: bool = False,
        eps: float | Tensor = DEFAULT_EPS,
        reduce_range: bool = False,
        factory_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(dtype, is_dynamic)
        self.qscheme = self.default_qscheme if qscheme is None else qscheme
        low, high = _resolve_range(self.dtype, quant_min, quant_max)
        if reduce_range and quant_min is None and quant_max is None:
            low, high = (None if bound is None else bound // 2 for bound in (low, high))
        self.quant_min, self.quant_max = low, high
        self._check_scheme()
        self.ch_axis = 0 if ch_axis is None and is_per_channel(self.qscheme) else ch_axis
        self.reduce_range = reduce_range
        smallest = torch.as_tensor(eps, dtype=torch.float32).reshape(1)
        self.register_buffer("eps", smallest.to(**factory_kwargs or {}))

    @classmethod
    def granularity_for(cls, **arguments: Any) -> Granularity:
        """The granularity of an observer made with these arguments."""
        return granularity_from(**{"qscheme": cls.default_qscheme, **arguments})

    @property
    def granularity(self) -> Granularity:
        """How much of the tensor shares a scale."""
        return granularity_from(qscheme=self.qscheme, ch_axis=self.ch_axis)

    def _check_scheme(self) -> None:
        bounds = self.quant_min, self.quant_max
        check_symmetric(type(self).__name__, self.dtype, self.qscheme, *bounds)
        if self.per_channel is None or is_per_channel(self.qscheme) == self.per_channel:
            return
        expected = "per-channel" if self.per_channel else "per-tensor"
        raise ValueError(
            f"{type(self).__name__} expects a {expected} qscheme, found {self.qscheme}; "
            "use the observer of the other kind"
        )

    def _calculate_qparams(self, min_val: Tensor, max_val: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scale and zero point that cover a range; see `choose_qparams`."""
        assert self.quant_min is not None and self.quant_max is not None
        return choose_qparams(
            min_val,
            max_val,
            quant_min=self.quant_min,
            quant_max=self.quant_max,
            dtype=self.dtype,
            qscheme=self.qscheme,
            eps=self.eps.reshape(()),
        )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        state_dict.setdefault(prefix + "eps", self.eps)  # checkpoints used not to have it
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        """Return the settings, for ``repr``."""
        axis = "" if self.ch_axis is None else f", ch_axis={self.ch_axis}"
        return (
            f"dtype={self.dtype}, quant_min={self.quant_min}, quant_max={self.quant_max}, "
            f"qscheme={self.qscheme}{axis}, is_dynamic={self.is_dynamic}, eps={float(self.eps):.3g}"
        )


def _resolve_range(
    dtype: torch.dtype, quant_min: int | None, quant_max: int | None
) -> tuple[int | None, int | None]:
    """Return the range of integers in use: what is given, else all that ``dtype`` holds."""
    if dtype in CAST_DTYPES:
        return quant_min, quant_max
    if not is_quantized_dtype(dtype):
        raise TypeError(f"expected a dtype to quantize to, found {dtype}")
    least, greatest = (int(bound) for bound in dtype_bounds(dtype))
    low = least if quant_min is None else quant_min
    high = greatest if quant_max is None else quant_max
    if not least <= low < high <= greatest:
        raise IntegerRangeError(
            f"expected {least} <= quant_min < quant_max <= {greatest} for {dtype}, "
            f"found quant_min={low}, quant_max={high}"
        )
    return low, high
