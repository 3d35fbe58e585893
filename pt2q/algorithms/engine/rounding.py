"""What the quantize and dequantize that an observer stands for do to a tensor, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pt2q.ir import ops
from pt2q.ir.dtypes import FLOAT8_DTYPES, is_symmetric
from pt2q.numerics.qparams import DEFAULT_EPS
from pt2q.numerics.rounding import dequantize, quantize, round_trip
from pt2q.observers import Form, form_of
from pt2q.spec import PerAxis, PerGroup, PerTensor, PerToken, granularity_of
from pt2q.spec.resolved_granularity import simplest

Rounding = Callable[[Tensor], Tensor]
_SMALLEST = float(torch.finfo(torch.float32).tiny)


@dataclass(frozen=True)
class Grid:
    """The numbers that a static scheme can store: ``(q - zero_point) * scale``.

    Args:
        scale: ``[1]``, ``[C]`` along ``axis``, or ``[rows, groups]`` with a ``group_size``.
        zero_point: of the shape of ``scale``.
        quant_min, quant_max: the integers ``q``.
        dtype: what stores them.
        axis: the dimension that has a scale for each index, or None.
        group_size: how many neighbours along the last dimension share a scale, or None.
        floor: the smallest scale.
        scale_dtype: the type that a runtime keeps scales in; they are numbers of that type.
    """

    scale: Tensor
    zero_point: Tensor
    quant_min: int
    quant_max: int
    dtype: torch.dtype
    axis: int | None = None
    group_size: int | None = None
    floor: float = 0.0
    scale_dtype: torch.dtype = torch.float32

    def scaled(self, factor: Tensor | float, zero_point: Tensor | None = None) -> Grid:
        """The same integers with every scale multiplied, as far as scales may go.

        Args:
            factor: a number, or one for each scale.
            zero_point: those of the new grid; as they are if not given.
        """
        scale = (self.scale * factor).clamp(min=max(self.floor, _SMALLEST))
        scale = scale.to(self.scale_dtype).to(torch.float32)
        return self.with_scale(scale, zero_point)

    def with_scale(self, scale: Tensor, zero_point: Tensor | None = None) -> Grid:
        """The same integers with other scales, and zero points if given."""
        return replace(
            self, scale=scale, zero_point=self.zero_point if zero_point is None else zero_point
        )

    def spread(self, values: Tensor, x: Tensor) -> Tensor:
        """Values, one for each scale, as one for each element of a tensor on this grid."""
        if self.group_size is not None:
            return values.repeat_interleave(self.group_size, dim=-1)
        shape = [1] * x.dim()
        if self.axis is not None:
            shape[self.axis] = -1
        return values.reshape(shape).expand(x.shape)

    def total(self, x: Tensor) -> Tensor:
        """The sum, for each scale, of the elements that it is for."""
        if self.group_size is not None:
            return x.reshape(*x.shape[:-1], -1, self.group_size).sum(-1)
        if self.axis is None:
            return x.sum().reshape(1)
        return x.sum([d for d in range(x.dim()) if d != self.axis % x.dim()])

    def round(self, x: Tensor) -> Tensor:
        """The nearest stored number to each element, as the operators round."""
        if self.group_size is not None:
            return self._round_groups(x)
        scale: Tensor | float = self.scale
        zero_point: Tensor | int = self.zero_point
        if self.axis is None:  # literals in the graph, whose arithmetic is another than tensors'
            scale, zero_point = float(self.scale), int(self.zero_point)
        parameters = (scale, zero_point, self.quant_min, self.quant_max, self.dtype, self.axis)
        if x.dtype == torch.float32:
            return round_trip(x, *parameters)
        return dequantize(quantize(x, *parameters), *parameters, out_dtype=x.dtype)

    def _round_groups(self, x: Tensor) -> Tensor:
        low, high, size = self.quant_min, self.quant_max, self.group_size
        common = (self.scale, self.zero_point, low, high, self.dtype, size)
        stored = ops.qd.quantize_per_channel_group.default(x, *common)
        found: Tensor = ops.qd.dequantize_per_channel_group.default(stored, *common, x.dtype)
        return found

    @property
    def bits(self) -> float:
        """How many bits tell the integers apart."""
        return float(torch.log2(torch.tensor(float(self.quant_max - self.quant_min + 1))))


def grid_of(observer: Any, rank: int) -> Grid:
    """The grid that a static observer, of ours or of another library, has found.

    Args:
        observer: one for which `is_static` holds.
        rank: the number of dimensions of what it watches.

    Raises:
        NoDataError: it has seen nothing.
    """
    scale, zero_point = observer.calculate_qparams()
    granularity = simplest(granularity_of(observer), rank)
    group_size = granularity.group_size if isinstance(granularity, PerGroup) else None
    shape = scale.shape if group_size is not None else (-1,)
    floor, kept = getattr(observer, "eps", None), getattr(observer, "scale_dtype", None)
    return Grid(
        scale.detach().reshape(shape),
        zero_point.detach().reshape(shape),
        observer.quant_min,
        observer.quant_max,
        observer.dtype,
        granularity.axis if isinstance(granularity, PerAxis) else None,
        group_size,
        0.0 if floor is None else float(floor),
        torch.float32 if kept is None else kept,
    )


def is_static(observer: Any) -> bool:
    """Whether an observer stands for integers with parameters that calibration finds."""
    return form_of(observer) is Form.STATIC


def is_integer(observer: Any, rank: int) -> bool:
    """Whether what is stored are integers of a `Grid`: neighbours are equally far apart.

    Args:
        observer: of any library.
        rank: the number of dimensions of what it watches.
    """
    if not is_static(observer) or observer.dtype in FLOAT8_DTYPES:
        return False
    known = isinstance(simplest(granularity_of(observer), rank), PerTensor | PerAxis | PerGroup)
    return known and observer.qscheme != torch.per_channel_affine_float_qparams


def rounding_of(observer: Any, rank: int) -> Rounding:
    """What becomes of a tensor at an observer once the model is converted.

    Args:
        observer: any; one that writes operators of its own counts as an identity.
        rank: the number of dimensions of what it watches.

    Raises:
        NoDataError: a static observer has seen nothing.
    """
    form = form_of(observer)
    if form in (Form.NOTHING, Form.OWN):
        return lambda x: x
    if form is Form.CAST:
        return lambda x: x.to(observer.dtype).to(x.dtype)
    if form is Form.STATIC:
        return grid_of(observer, rank).round
    per_token = isinstance(simplest(granularity_of(observer), rank), PerToken)
    return lambda x: _per_token(x, observer) if per_token else _per_input(x, observer)


def _per_input(x: Tensor, observer: Any) -> Tensor:
    symmetric = is_symmetric(observer.qscheme)
    packet = ops.qd.choose_qparams_symmetric if symmetric else ops.qd.choose_qparams
    eps = getattr(observer, "eps", None)
    eps = DEFAULT_EPS if eps is None else float(eps)
    low, high, dtype = observer.quant_min, observer.quant_max, observer.dtype
    scale, zero_point = packet.tensor(x, low, high, eps, dtype)
    common = (scale, zero_point, low, high, dtype)
    stored = ops.qd.quantize_per_tensor.tensor(x, *common)
    out = {} if x.dtype == torch.float32 else {"out_dtype": x.dtype}
    found: Tensor = ops.qd.dequantize_per_tensor.tensor(stored, *common, **out)
    return found


def _per_token(x: Tensor, observer: Any) -> Tensor:
    low, high, dtype = observer.quant_min, observer.quant_max, observer.dtype
    scale, zero_point = ops.qd.choose_qparams_per_token_asymmetric.default(x, dtype)
    stored = ops.qd.quantize_per_token.default(x, scale, zero_point, low, high, dtype)
    found: Tensor = ops.qd.dequantize_per_token.default(
        stored, scale, zero_point, low, high, dtype, x.dtype
    )
    return found
