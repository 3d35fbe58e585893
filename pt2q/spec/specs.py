"""The vocabulary: what a quantizer can ask for.

Specs are frozen and hashable. They are validated when they are made, so that a
mistake is reported at the line that made it and not after calibration.
"""

from __future__ import annotations

import functools
from abc import ABC
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pt2q.errors import SpecError
from pt2q.ir.dtypes import STORED_AS, is_per_channel
from pt2q.ir.graph import EdgeOrNode
from pt2q.spec.checks import LEFT_IN_FLOAT, axis_in_use, check_range, check_symmetric, dtype_limits
from pt2q.spec.constructor import ObserverOrFakeQuantizeConstructor, PartialWrapper, unwrapped


class QuantizationSpecBase(ABC):  # noqa: B024 - a closed family, told apart by isinstance
    """Base of the four ways to say how a tensor is quantized."""


@dataclass(frozen=True)
class QuantizationSpec(QuantizationSpecBase):
    """Quantize a tensor with parameters found by an observer.

    Args:
        dtype: what is stored: an integer or float8 dtype, or float16 / bfloat16 for a cast.
            float32, with an observer that collects nothing, leaves the tensor in float.
        observer_or_fake_quant_ctr: class, ``Class.with_args(...)``, ``functools.partial`` or
            function, called with those of the other fields that it takes. A partial is stored as a
            `PartialWrapper`, which compares by content.
        quant_min, quant_max: the integers used, inside the dtype; None means all of it.
        qscheme: per-tensor or per-channel, affine or symmetric; None leaves it to the observer.
        ch_axis: the dimension of a per-channel scheme: the observer's, else 0, if it is not given.
            It means nothing beside a per-tensor scheme, and is then None.
        is_dynamic: parameters are computed from each input at run time.

    Raises:
        SpecError: the fields contradict each other or the dtype.
    """

    dtype: torch.dtype
    observer_or_fake_quant_ctr: ObserverOrFakeQuantizeConstructor
    quant_min: int | None = None
    quant_max: int | None = None
    qscheme: torch.qscheme | None = None
    ch_axis: int | None = None
    is_dynamic: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.observer_or_fake_quant_ctr, functools.partial):
            wrapped = PartialWrapper(self.observer_or_fake_quant_ctr)
            object.__setattr__(self, "observer_or_fake_quant_ctr", wrapped)
        object.__setattr__(self, "dtype", STORED_AS.get(self.dtype, self.dtype))
        axis = axis_in_use(self.qscheme, self.ch_axis, self.observer_or_fake_quant_ctr)
        object.__setattr__(self, "ch_axis", axis)
        if not self.stays_in_float:
            bounds = self.quant_min, self.quant_max
            check_range("QuantizationSpec", self.dtype, *bounds)
            check_symmetric("QuantizationSpec", self.dtype, self.qscheme, *bounds)

    @property
    def stays_in_float(self) -> bool:
        """Whether nothing is to be done: float32, with an observer that collects nothing."""
        cls, _ = unwrapped(self.observer_or_fake_quant_ctr)
        return self.dtype is LEFT_IN_FLOAT and not getattr(cls, "collects", False)


@dataclass(frozen=True)
class FixedQParamsQuantizationSpec(QuantizationSpecBase):
    """Quantize a tensor whose range is known beforehand, as a sigmoid's is.

    Args:
        dtype: an integer or float8 dtype.
        scale: finite and positive.
        zero_point: inside [quant_min, quant_max].
        quant_min, quant_max: the integers used; None means all of the dtype.
        qscheme: a per-tensor scheme.
        is_dynamic: always False in practice; kept for symmetry with the other specs.

    Raises:
        SpecError: the fields contradict each other or the dtype.
    """

    dtype: torch.dtype
    scale: float
    zero_point: int
    quant_min: int | None = None
    quant_max: int | None = None
    qscheme: torch.qscheme | None = None
    is_dynamic: bool = False

    def __post_init__(self) -> None:
        name = "FixedQParamsQuantizationSpec"
        check_range(name, self.dtype, self.quant_min, self.quant_max)
        if is_per_channel(self.qscheme):
            raise SpecError(f"{name}: one scale needs a per-tensor qscheme, found {self.qscheme}")
        if not 0 < self.scale < float("inf"):
            raise SpecError(f"{name}: scale must be finite and positive, found {self.scale}")
        least, greatest = dtype_limits(self.dtype)
        low = least if self.quant_min is None else self.quant_min
        high = greatest if self.quant_max is None else self.quant_max
        if not low <= self.zero_point <= high:
            raise SpecError(f"{name}: zero_point {self.zero_point} is outside [{low}, {high}]")


@dataclass(frozen=True)
class SharedQuantizationSpec(QuantizationSpecBase):
    """Use the same parameters as another tensor, named by its edge or node.

    The reference may point at an edge or node anywhere in the graph, annotated before
    or after this one, and may itself be shared; see `pt2q.spec.plan`.
    """

    edge_or_node: EdgeOrNode


@dataclass(frozen=True)
class DerivedQuantizationSpec(QuantizationSpecBase):
    """Compute the parameters from those of other tensors, as an int32 bias does.

    Args:
        derived_from: the tensors whose observers are handed to ``derive_qparams_fn``.
        derive_qparams_fn: takes their observers, in order; returns (scale, zero_point).
        dtype, quant_min, quant_max, qscheme, ch_axis, is_dynamic: as in `QuantizationSpec`.

    Raises:
        SpecError: the fields contradict each other or the dtype.
    """

    derived_from: tuple[EdgeOrNode, ...]
    derive_qparams_fn: Callable[[list[Any]], tuple[torch.Tensor, torch.Tensor]]
    dtype: torch.dtype
    quant_min: int | None = None
    quant_max: int | None = None
    qscheme: torch.qscheme | None = None
    ch_axis: int | None = None
    is_dynamic: bool = False

    def __post_init__(self) -> None:
        # A list is what quantizers pass; a tuple is what can be hashed.
        object.__setattr__(self, "derived_from", tuple(self.derived_from))
        check_range("DerivedQuantizationSpec", self.dtype, self.quant_min, self.quant_max)
        object.__setattr__(self, "ch_axis", axis_in_use(self.qscheme, self.ch_axis))
        if not self.derived_from:
            raise SpecError("DerivedQuantizationSpec: derived_from names no tensor")
