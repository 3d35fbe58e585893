"""What observers share: how they are made, what they are asked for, what they say.

An observer returns its input untouched, the same tensor object, and keeps statistics on the side.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pt2q.errors import NoDataError, NonFiniteActivationError
from pt2q.ir.dtypes import CAST_DTYPES, dtype_bounds, is_per_channel, is_quantized_dtype
from pt2q.numerics.qparams import DEFAULT_EPS, choose_qparams
from pt2q.spec.constructor import PartialWrapper, with_args


class ObserverBase(nn.Module, ABC):
    """Base of observers: a module that returns its input and says how to quantize it.

    A subclass has ``forward`` and ``calculate_qparams``, and any arguments.

    Args:
        dtype: Type of the quantized values, or float16 / bfloat16 for a mere conversion.
        is_dynamic: The parameters are found at run time; here it is only carried along.

    Attributes:
        node_name: The node whose output is watched, for messages; set by the insertion pass.
        constant_input: The input is a weight: observe it again only when it has changed.
        observer_enabled: Whether calls observe.
    """

    dtype: torch.dtype
    is_dynamic: bool
    node_name: str
    constant_input: bool
    observer_enabled: bool

    def __init__(self, dtype: torch.dtype = torch.int8, is_dynamic: bool = False) -> None:
        super().__init__()
        self.dtype = dtype
        self.is_dynamic = is_dynamic
        self.node_name = ""
        self.constant_input = False
        self.observer_enabled = True

    @classmethod
    def with_args(cls, **kwargs: Any) -> PartialWrapper:
        """Return a constructor of this class with some arguments filled in."""
        return with_args(cls, **kwargs)

    @classmethod
    def with_callable_args(cls, **kwargs: Callable[[], Any]) -> PartialWrapper:
        """Return a constructor that calls these for its arguments whenever it is called."""
        return with_args(cls).with_callable_args(**kwargs)

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Observe ``x`` and return it, the same object."""

    @abstractmethod
    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Return ``(scale, zero_point)``, float32 and int64, of shape ``[1]`` or ``[C]``.

        Raises:
            NoDataError: nothing was observed.
            NonFiniteActivationError: a NaN was observed.
        """

    def reset(self) -> None:
        """Forget all that was observed."""

    @property
    def has_data(self) -> bool:
        """Whether at least one value was observed; may synchronise with an accelerator."""
        return True

    @property
    def together_with(self) -> Hashable:
        """What is equal for observers whose parameters are found faster together; None: alone."""
        return None

    @staticmethod
    def calculate_together(observers: Sequence[Any]) -> list[tuple[Tensor, Tensor]]:
        """Return ``calculate_qparams()`` of observers with data, alike in `together_with`."""
        return [observer.calculate_qparams() for observer in observers]

    def check_data(self) -> None:
        """Raise what `calculate_qparams` raises when there is no usable data."""
        if not self.has_data:
            raise self._no_data_error()

    def _where(self) -> str:
        name = type(self).__name__
        return f"{name} on node '{self.node_name}':" if self.node_name else f"{name}:"

    def _nan_error(self) -> NonFiniteActivationError:
        return NonFiniteActivationError(
            f"{self._where()} the observed tensor holds NaN; check the calibration data and the "
            "float model, which must compute finite numbers"
        )

    def _no_data_error(self) -> NoDataError:
        return NoDataError(
            f"{self._where()} no value was observed; run the prepared model on calibration data "
            "that reaches this node before converting it"
        )


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

    Raises:
        TypeError: ``dtype`` cannot be quantized to.
        ValueError: the range does not fit ``dtype``, or the scheme does not fit the class.
    """

    default_qscheme: torch.qscheme = torch.per_tensor_affine
    per_channel: bool | None = None
    """Whether the class takes per-channel schemes alone, per-tensor ones alone, or (None) both."""

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
    ) -> None:
        super().__init__(dtype, is_dynamic)
        self.qscheme = self.default_qscheme if qscheme is None else qscheme
        self.quant_min, self.quant_max = _resolve_range(dtype, quant_min, quant_max)
        self._check_scheme()
        self.ch_axis = 0 if ch_axis is None and is_per_channel(self.qscheme) else ch_axis
        self.eps = float(eps)

    def _check_scheme(self) -> None:
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
            eps=self.eps,
        )

    def extra_repr(self) -> str:
        """Return the settings, for ``repr``."""
        axis = "" if self.ch_axis is None else f", ch_axis={self.ch_axis}"
        return (
            f"dtype={self.dtype}, quant_min={self.quant_min}, quant_max={self.quant_max}, "
            f"qscheme={self.qscheme}{axis}, is_dynamic={self.is_dynamic}, eps={self.eps:.3g}"
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
        raise ValueError(
            f"expected {least} <= quant_min < quant_max <= {greatest} for {dtype}, "
            f"found quant_min={low}, quant_max={high}"
        )
    return low, high
