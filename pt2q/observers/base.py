"""What observers share: how they are made, when they look, what they say when they cannot.

An observer returns its input untouched, the same tensor object, and keeps statistics on the side.
It makes no host synchronisation on an accelerator; its buffers follow the device of its input.

What never enters a range: infinities, and values within 1/256 of the largest magnitude of the
dtype (``MASK_LIMITS``), because ``torch.finfo(dtype).min``, alone or with scores added to it, is
how attention masks are written. NaN is an error that names the node.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pt2q.errors import NoDataError, NonFiniteActivationError
from pt2q.numerics.quantization import (
    DEFAULT_EPS,
    choose_qparams,
    dtype_bounds,
    is_per_channel,
    is_quantized_dtype,
)
from pt2q.observers.streaming import make_room

_WIDE_LIMIT = (1 - 2**-8) * 2.0**128
MASK_LIMITS = {
    torch.float16: (1 - 2**-8) * 2.0**16,
    torch.bfloat16: _WIDE_LIMIT,
    torch.float32: _WIDE_LIMIT,
    torch.float64: _WIDE_LIMIT,
    torch.float8_e4m3fn: _WIDE_LIMIT,
    torch.float8_e5m2: _WIDE_LIMIT,
}
"""Smallest magnitude, per dtype, that counts as a mask and not as a value."""

CAST_DTYPES = (torch.float16, torch.bfloat16)
_INF = float("inf")


@dataclass(frozen=True)
class ObserverConstructor:
    """A class with some of its arguments filled in: hashable, comparable, picklable.

    Made by ``SomeObserver.with_args(...)``. Calling it makes an observer, ``with_args`` adds or
    replaces arguments.
    """

    cls: type[nn.Module]
    items: tuple[tuple[str, Any], ...] = ()

    @property
    def keywords(self) -> dict[str, Any]:
        """The arguments filled in so far."""
        return dict(self.items)

    def with_args(self, **kwargs: Any) -> ObserverConstructor:
        """Return a constructor with these arguments added or replaced."""
        return ObserverConstructor(self.cls, tuple(sorted({**self.keywords, **kwargs}.items())))

    def __call__(self, **kwargs: Any) -> Any:
        """Make an observer; arguments given here come before those filled in."""
        return self.cls(**{**self.keywords, **kwargs})

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.items)
        return f"{self.cls.__name__}.with_args({arguments})"


class ObserverBase(nn.Module, ABC):
    """What all observers share: the quantized type, its range, and when to observe.

    Args:
        dtype: Type of the quantized values, or float16 / bfloat16 for a mere conversion.
        quant_min: Smallest integer in use; the smallest of ``dtype`` if not given.
        quant_max: Largest integer in use; the largest of ``dtype`` if not given.
        qscheme: Per tensor or per channel, affine or symmetric; the class's own if ``None``.
        ch_axis: Channel axis of a per-channel scheme, 0 if not given.
        is_dynamic: The parameters are found at run time; here it is only carried along.
        eps: Smallest scale.

    Attributes:
        node_name: The node whose output is watched, for messages; set by the insertion pass.
        constant_input: The input is a weight: observe it again only when it has changed.
        observer_enabled: Whether calls observe.

    Raises:
        TypeError: ``dtype`` cannot be quantized to.
        ValueError: the range does not fit ``dtype``, or the scheme does not fit the class.
    """

    default_qscheme: torch.qscheme = torch.per_tensor_affine
    per_channel: bool | None = False
    needs_data: bool = True

    node_name: str
    constant_input: bool
    observer_enabled: bool

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
        super().__init__()
        self.dtype = dtype
        self.qscheme = self.default_qscheme if qscheme is None else qscheme
        self.quant_min, self.quant_max = _resolve_range(dtype, quant_min, quant_max)
        self._check_scheme()
        self.ch_axis = 0 if ch_axis is None and is_per_channel(self.qscheme) else ch_axis
        self.is_dynamic = is_dynamic
        self.eps = float(eps)
        self.node_name = ""
        self.constant_input = False
        self.observer_enabled = True
        self._last_input: tuple[Any, ...] | None = None

    def _check_scheme(self) -> None:
        if self.per_channel is None or is_per_channel(self.qscheme) == self.per_channel:
            return
        expected = "per-channel" if self.per_channel else "per-tensor"
        raise ValueError(
            f"{type(self).__name__} expects a {expected} qscheme, found {self.qscheme}; "
            "use the observer of the other kind"
        )

    @classmethod
    def with_args(cls, **kwargs: Any) -> ObserverConstructor:
        """Return a constructor of this class with some arguments filled in."""
        return ObserverConstructor(cls).with_args(**kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """Observe ``x`` and return it, the same object.

        Raises:
            TypeError: ``x`` does not hold floating point numbers.
            NonFiniteActivationError: ``x`` holds a NaN (on an accelerator, where looking would
                stall it, ``calculate_qparams`` raises it).
        """
        if not self.observer_enabled or not self.needs_data:
            return x
        if not x.is_floating_point():
            raise TypeError(f"{self._where()} expected floating point numbers, found {x.dtype}")
        if x.numel() == 0 or (self.constant_input and not self._input_changed(x)):
            return x
        if not torch.is_inference_mode_enabled():
            self._observe(x.detach())
            return x
        # Statistics must be ordinary tensors, also when the model runs in inference mode.
        with torch.inference_mode(False):
            self._observe(x.detach())
        return x

    def _input_changed(self, x: Tensor) -> bool:
        """Whether a constant input is not the one last seen; forgets the old one if so."""
        version = None if x.is_inference() else x._version
        this = (x.data_ptr(), x.shape, x.stride(), version)
        if this == self._last_input:
            return False
        self.reset()
        self._last_input = this
        return True

    @abstractmethod
    def _observe(self, x: Tensor) -> None:
        """Take ``x``, which is not empty, into the statistics."""

    @abstractmethod
    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Return ``(scale, zero_point)``, float32 and int64, of shape ``[1]`` or ``[C]``.

        Raises:
            NoDataError: nothing was observed.
            NonFiniteActivationError: a NaN was observed.
        """

    def reset(self) -> None:
        """Forget all that was observed."""
        self._last_input = None

    @property
    def has_data(self) -> bool:
        """Whether at least one value was observed; may synchronise with an accelerator."""
        return True

    def _qparams_of(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        assert self.quant_min is not None and self.quant_max is not None
        return choose_qparams(
            low,
            high,
            quant_min=self.quant_min,
            quant_max=self.quant_max,
            dtype=self.dtype,
            qscheme=self.qscheme,
            eps=self.eps,
        )

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

    def extra_repr(self) -> str:
        """Return the settings, for ``repr``."""
        axis = "" if self.ch_axis is None else f", ch_axis={self.ch_axis}"
        return (
            f"dtype={self.dtype}, quant_min={self.quant_min}, quant_max={self.quant_max}, "
            f"qscheme={self.qscheme}{axis}, is_dynamic={self.is_dynamic}, eps={self.eps:.3g}"
        )

    def __getstate__(self) -> dict[str, Any]:
        # The address of a tensor means nothing in a copy.
        return {**self.__dict__, "_last_input": None}

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        self._last_input = None
        make_room(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


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
