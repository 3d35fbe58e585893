"""Observers: modules that watch a tensor pass and say how to quantize it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from pt2q.errors import NoDataError
from pt2q.numerics.clipping import Grid, best_grid
from pt2q.numerics.histogram import DEFAULT_BINS, flattened, summarise
from pt2q.numerics.quantization import (
    FLOAT8_DTYPES,
    choose_qparams,
    is_symmetric,
    normal_scale,
    symmetric_zero_point,
)
from pt2q.observers.base import CAST_DTYPES, MASK_LIMITS, ObserverBase, ObserverConstructor
from pt2q.observers.streaming import StreamingHistogram, estimated_counts, few_values

__all__ = [
    "CAST_DTYPES",
    "MASK_LIMITS",
    "FixedQParamsObserver",
    "HistogramObserver",
    "MinMaxObserver",
    "MovingAverageMinMaxObserver",
    "MovingAveragePerChannelMinMaxObserver",
    "NoopObserver",
    "ObserverBase",
    "ObserverConstructor",
    "PerChannelMinMaxObserver",
    "PlaceholderObserver",
    "batched_qparams",
    "disable_observer",
    "enable_observer",
]

_INF = float("inf")
_BATCH = 8


class _RangeObserver(ObserverBase):
    """An observer whose statistics are a smallest and a largest value, per tensor or channel.

    ``inf`` and ``-inf`` stand for "nothing seen yet": they are the neutral elements of minimum
    and maximum, so that no step has to ask, which on an accelerator would stall it.
    """

    min_val: Tensor
    max_val: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.quant_min is None:
            raise TypeError(
                f"{type(self).__name__} cannot convert to {self.dtype}; use a PlaceholderObserver"
            )
        self.register_buffer("min_val", torch.tensor(_INF))
        self.register_buffer("max_val", torch.tensor(-_INF))

    def _observe(self, x: Tensor) -> None:
        self._take_range(*self._range_of(x))

    def _take_range(self, low: Tensor, high: Tensor) -> None:
        low, high = low.to(torch.float32), high.to(torch.float32)
        old_low, old_high = self.min_val, self.max_val
        if old_low.device != low.device:
            old_low, old_high = old_low.to(low.device), old_high.to(low.device)
        self._buffers["min_val"] = self._merge(old_low, low, torch.minimum)
        self._buffers["max_val"] = self._merge(old_high, high, torch.maximum)

    def _merge(self, old: Tensor, new: Tensor, extreme: Any) -> Tensor:
        merged: Tensor = extreme(old, new)
        return merged

    def _range_of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the smallest and the largest value in float32, masks left out."""
        limit = MASK_LIMITS[x.dtype]
        if x.dtype in FLOAT8_DTYPES:
            x = x.to(torch.float32)
        dims = self._reduced_dims(x)
        if x.device.type == "cpu":
            low, high = _extremes(x, dims)
            least, greatest = float(low.amin()), float(high.amax())
            if least > -limit and greatest < limit:
                return low, high
            if least != least:
                raise self._nan_error()
        return self._range_on_device(x, dims, limit)

    @staticmethod
    def _range_on_device(x: Tensor, dims: tuple[int, ...], limit: float) -> tuple[Tensor, Tensor]:
        """Return the same without a look at any value: masks left out, NaN kept."""
        masked = x.abs() >= limit
        low = x.masked_fill(masked, _INF).amin(dims)
        high = x.masked_fill(masked, -_INF).amax(dims)
        return low, high

    def _reduced_dims(self, x: Tensor) -> tuple[int, ...]:
        if self.ch_axis is None or not self.per_channel:
            return ()
        if not -x.dim() <= self.ch_axis < x.dim():
            raise ValueError(
                f"{self._where()} ch_axis={self.ch_axis} is no axis of a tensor of shape "
                f"{tuple(x.shape)}"
            )
        axis = self.ch_axis % x.dim()
        return tuple(dim for dim in range(x.dim()) if dim != axis)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """See :meth:`ObserverBase.calculate_qparams`."""
        self.check_data()
        # A channel that saw nothing but masks is as good as all zero.
        seen = self.min_val <= self.max_val
        low = torch.where(seen, self.min_val, 0.0).reshape(-1)
        high = torch.where(seen, self.max_val, 0.0).reshape(-1)
        return self._qparams_of(low, high)

    def check_data(self) -> None:
        """Raise what ``calculate_qparams`` raises when there is no usable data."""
        if bool(torch.isnan(self.min_val).any()):
            raise self._nan_error()
        if not self.has_data:
            raise self._no_data_error()

    @property
    def has_data(self) -> bool:
        """See :attr:`ObserverBase.has_data`."""
        return bool((~(self.min_val > self.max_val)).any())

    def reset(self) -> None:
        """See :meth:`ObserverBase.reset`."""
        super().reset()
        device = self.min_val.device
        self._buffers["min_val"] = torch.tensor(_INF, device=device)
        self._buffers["max_val"] = torch.tensor(-_INF, device=device)


def _extremes(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    if not dims:
        low, high = torch.aminmax(x)
        return low, high
    return x.amin(dims), x.amax(dims)


class MinMaxObserver(_RangeObserver):
    """The smallest and the largest value of all that was seen, of the whole tensor."""


class PerChannelMinMaxObserver(_RangeObserver):
    """The smallest and the largest value of all that was seen, for each index of ``ch_axis``."""

    default_qscheme = torch.per_channel_affine
    per_channel = True


class _MovingAverage(_RangeObserver):
    """Running range ``r += c * (batch - r)``; the first batch is taken as it is.

    Args:
        averaging_constant: ``c``, in ``(0, 1]``; 1 keeps the last batch alone.
        **kwargs: As :class:`ObserverBase`.
    """

    def __init__(self, *, averaging_constant: float = 0.01, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 < averaging_constant <= 1:
            raise ValueError(
                f"expected an averaging_constant in (0, 1], found {averaging_constant}"
            )
        self.averaging_constant = averaging_constant

    def _merge(self, old: Tensor, new: Tensor, extreme: Any) -> Tensor:
        averaged = old + self.averaging_constant * (new - old)
        averaged = torch.where(torch.isinf(old), new, averaged)
        return torch.where(torch.isinf(new), old, averaged)

    def extra_repr(self) -> str:
        """Return the settings, for ``repr``."""
        return f"{super().extra_repr()}, averaging_constant={self.averaging_constant}"


class MovingAverageMinMaxObserver(_MovingAverage):
    """Moving averages of the smallest and the largest value of each batch."""


class MovingAveragePerChannelMinMaxObserver(_MovingAverage):
    """Moving averages of the smallest and the largest value of each batch, per channel."""

    default_qscheme = torch.per_channel_affine
    per_channel = True


class HistogramObserver(MinMaxObserver):
    """The scale and zero point with the smallest squared error, found on a histogram.

    The histogram is streamed (`pt2q.observers.streaming`) and searched (`pt2q.numerics.clipping`);
    the smallest and the largest value are kept exactly beside it. float8 and grids wider than any
    histogram (int32) use these alone.

    Args:
        bins: Number of bins, a power of two; half of them lie on either side of zero.
        **kwargs: As :class:`ObserverBase`.
    """

    histogram: StreamingHistogram

    def __init__(self, *, bins: int = DEFAULT_BINS, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.histogram = StreamingHistogram(bins)

    def _observe(self, x: Tensor) -> None:
        flat = flattened(x)
        if flat.dtype in (torch.float64, *FLOAT8_DTYPES):
            flat = flat.to(torch.float32)
        if flat.device.type == "cpu":
            self._observe_on_host(flat)
        else:
            self._observe_on_device(flat)

    def _observe_on_host(self, flat: Tensor) -> None:
        summary = summarise(flat, self.histogram.totals.calls)
        least, greatest = float(summary.low), float(summary.high)
        limit = MASK_LIMITS[flat.dtype]
        if least > -limit and greatest < limit:
            if least < float(self.min_val) or greatest > float(self.max_val):
                self._take_range(summary.low, summary.high)
            self.histogram.add(summary, max(-least, greatest))
            return
        if least != least:
            raise self._nan_error()
        kept = flat[flat.abs() < limit]
        if kept.numel() > 0:
            self._observe_on_host(kept)

    def _observe_on_device(self, flat: Tensor) -> None:
        """Do the same without asking the device anything: masks become zeros, NaN stays."""
        limit = MASK_LIMITS[flat.dtype]
        self._take_range(*self._range_on_device(flat, (), limit))
        masked = ~(flat.abs() < limit)
        summary = summarise(flat.masked_fill(masked, 0.0), self.histogram.totals.calls)
        self.histogram.add(summary, torch.maximum(-self.min_val, self.max_val))

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """See :meth:`ObserverBase.calculate_qparams`."""
        return batched_qparams([self])[0]

    def reset(self) -> None:
        """See :meth:`ObserverBase.reset`."""
        super().reset()
        self.histogram.reset()

    @property
    def grid(self) -> Grid | None:
        """The integers to search a grid for, or ``None`` where the range alone decides."""
        if self.dtype in FLOAT8_DTYPES or self.dtype == torch.int32:
            return None
        assert self.quant_min is not None and self.quant_max is not None
        middle = symmetric_zero_point(self.quant_min, self.quant_max, self.dtype)
        zero_point = middle if is_symmetric(self.qscheme) else None
        return Grid(self.quant_min, self.quant_max, zero_point)

    def extra_repr(self) -> str:
        """Return the settings, for ``repr``."""
        return f"{super().extra_repr()}, bins={self.histogram.bins}"


def batched_qparams(observers: Sequence[ObserverBase]) -> list[tuple[Tensor, Tensor]]:
    """Return ``calculate_qparams()`` of each observer, histograms searched together.

    The same numbers as one by one. Errors are those of the first observer that has one.
    """
    found: dict[int, tuple[Tensor, Tensor]] = {}
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index, observer in enumerate(observers):
        grid = observer.grid if isinstance(observer, HistogramObserver) else None
        if grid is None or not isinstance(observer, HistogramObserver):
            found[index] = (
                _RangeObserver.calculate_qparams(observer)
                if isinstance(observer, HistogramObserver)
                else observer.calculate_qparams()
            )
            continue
        observer.check_data()
        key = (grid, observer.histogram.bins, observer.dtype, observer.qscheme)
        groups.setdefault(key, []).append(index)
    for (grid, *_), members in groups.items():
        for start in range(0, len(members), _BATCH):
            batch = members[start : start + _BATCH]
            histograms = [cast(HistogramObserver, observers[index]) for index in batch]
            found.update(zip(batch, _searched(histograms, grid), strict=True))
    return [found[index] for index in range(len(observers))]


def _searched(observers: list[HistogramObserver], grid: Grid) -> list[tuple[Tensor, Tensor]]:
    """Search the histograms of observers of one grid together."""
    ranges = torch.stack([torch.stack([o.min_val, o.max_val]).cpu() for o in observers])
    eps = torch.tensor([o.eps for o in observers])
    scale, zero_point = choose_qparams(
        ranges[:, 0],
        ranges[:, 1],
        quant_min=grid.quant_min,
        quant_max=grid.quant_max,
        dtype=observers[0].dtype,
        qscheme=observers[0].qscheme,
        eps=eps,
    )
    # A range that the smallest scale covers leaves nothing to search.
    wide = (scale > eps).nonzero().view(-1)
    if wide.numel() > 0:
        chosen = [observers[i].histogram for i in wide.tolist()]
        scale[wide], zero_point[wide] = _least_error(
            chosen, ranges[wide].double(), eps[wide].double(), grid
        )
    return [
        (scale[i : i + 1].to(o.min_val.device), zero_point[i : i + 1].to(o.min_val.device))
        for i, o in enumerate(observers)
    ]


def _least_error(
    histograms: list[StreamingHistogram], ranges: Tensor, eps: Tensor, grid: Grid
) -> tuple[Tensor, Tensor]:
    """Return scales (float32) and zero points (int64), ``[N]`` each, in units of the values."""
    low, high = ranges.unbind(1)
    counts, exponent = estimated_counts(histograms, low, high)
    width = torch.ldexp(torch.ones_like(low), exponent)
    low, high, floor = low.clamp(max=0) / width, high.clamp(min=0) / width, eps / width
    scale, zero_point = best_grid(counts, low, high, floor, grid)
    few, values = few_values(histograms, exponent)
    if few:
        scale[few], zero_point[few] = best_grid(
            counts[few], low[few], high[few], floor[few], grid, values
        )
    return normal_scale((scale * width).to(torch.float32)), zero_point.to(torch.int64)


class FixedQParamsObserver(ObserverBase):
    """Scale and zero point known beforehand, as for a sigmoid; needs no data.

    Args:
        scale: The scale.
        zero_point: The zero point.
        **kwargs: As :class:`ObserverBase`.
    """

    needs_data = False
    scale: Tensor
    zero_point: Tensor

    def __init__(self, *, scale: float, zero_point: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.quant_min is None or self.quant_max is None:
            raise TypeError(f"expected a dtype to quantize to, found {self.dtype}")
        if not (0 < scale < _INF and self.quant_min <= zero_point <= self.quant_max):
            raise ValueError(
                f"expected a positive scale and a zero point in [{self.quant_min}, "
                f"{self.quant_max}], found {scale} and {zero_point}"
            )
        self.register_buffer("scale", torch.tensor([float(scale)]))
        self.register_buffer("zero_point", torch.tensor([int(zero_point)]))

    def _observe(self, x: Tensor) -> None:
        """Take no notice."""

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Return the scale and zero point given."""
        return self.scale, self.zero_point


class PlaceholderObserver(ObserverBase):
    """Marks a tensor whose parameters are found at run time, or that is only converted.

    Args:
        per_token: Dynamic parameters for each token (the last axis) and not for the tensor.
        **kwargs: As :class:`ObserverBase`.
    """

    per_channel = None
    needs_data = False

    def __init__(self, *, per_token: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.per_token = per_token

    def _observe(self, x: Tensor) -> None:
        """Take no notice."""

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Raise: there are none before run time."""
        raise NoDataError(
            f"{self._where()} a placeholder has no quantization parameters: they are found at "
            "run time (is_dynamic) or not needed (a conversion to a narrower float)"
        )

    def extra_repr(self) -> str:
        """Return the settings, for ``repr``."""
        return f"{super().extra_repr()}, per_token={self.per_token}"


class NoopObserver(PlaceholderObserver):
    """Observes nothing and quantizes nothing."""


def enable_observer(module: nn.Module) -> None:
    """Let an observer observe; for ``model.apply(enable_observer)``."""
    if isinstance(module, ObserverBase):
        module.observer_enabled = True


def disable_observer(module: nn.Module) -> None:
    """Stop an observer from observing; for ``model.apply(disable_observer)``."""
    if isinstance(module, ObserverBase):
        module.observer_enabled = False
