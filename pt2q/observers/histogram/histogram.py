"""Scale and zero point with the smallest squared error."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from pt2q.ir.dtypes import FLOAT8_DTYPES, is_symmetric
from pt2q.numerics.extremes import INF, MASK_LIMITS, extremes_without_masks
from pt2q.numerics.grid_error import Grid
from pt2q.numerics.histogram import DEFAULT_BINS
from pt2q.numerics.qparams import symmetric_zero_point
from pt2q.numerics.sampling import WHOLE, flattened, summarise
from pt2q.observers.histogram.merging import merged
from pt2q.observers.histogram.search import searched_qparams
from pt2q.observers.histogram.streaming import StreamingHistogram
from pt2q.observers.min_max.min_max import MinMaxObserver

_LIMIT = MASK_LIMITS[torch.float32]


class HistogramObserver(MinMaxObserver):
    """The scale and zero point with the smallest squared error, found on a histogram.

    The histogram is streamed (`streaming.py`) and searched (`pt2q.numerics.grid_search`);
    the smallest and the largest value are kept exactly beside it. float8 and grids wider than any
    histogram (int32) use these alone.

    That grid may reach a little beyond the values, to have a point where most of them are. A
    runtime that wants to leave out a relu, because rounding to the grid does the same, needs a grid
    that ends where the relu does: with bounds, the scale is that of the search, made smaller if
    need be.

    Args:
        bins: Number of bins, a power of two; half of them lie on either side of zero.
        low: No value is below; 0 or less.
        high: No value is above; 0 or more.
        **kwargs: As :class:`UniformQuantizationObserverBase`.
    """

    histogram: StreamingHistogram

    def __init__(
        self, *, bins: int = DEFAULT_BINS, low: float = -INF, high: float = INF, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if not low <= 0 <= high or low == high:
            raise ValueError(f"expected bounds around 0, found {low} and {high}")
        self.low, self.high = low, high
        self.histogram = StreamingHistogram(bins)

    def forward(self, x: Tensor) -> Tensor:
        """See :meth:`StatisticsObserver.forward`.

        Most tensors are small and plain, beside layers that take as long as a few calls: what is
        asked and written of those is the least there can be.
        """
        if not (
            type(x) is Tensor
            and x.dtype is torch.float32
            and 0 < x.numel() <= WHOLE
            and x.is_cpu
            and x.is_contiguous()
            and not x.requires_grad
            and self._takes_small()
        ):
            return super().forward(x)
        flat = x.view(-1)
        low, high = torch.aminmax(flat)
        least, greatest = low.item(), high.item()
        if not (least > -_LIMIT and greatest < _LIMIT):
            return super().forward(x)
        held = self._buffers
        if least < held["min_val"].item() or greatest > held["max_val"].item():  # type: ignore[union-attr]
            self._take_range(low, high)
        self.histogram.add_whole(flat, max(-least, greatest))
        return x

    def _takes_small(self) -> bool:
        """Whether small tensors are taken whole, without a question to a subclass."""
        return (
            self.observer_enabled
            and not self.constant_input
            and type(self)._observe is HistogramObserver._observe
            and not torch.is_inference_mode_enabled()
        )

    def _observe(self, x: Tensor) -> None:
        flat = flattened(x)
        if flat.dtype in (torch.float64, *FLOAT8_DTYPES):
            flat = flat.to(torch.float32)
        if flat.device.type == "cpu":
            self._observe_on_host(flat)
        else:
            self._observe_on_device(flat)

    def _observe_on_host(self, flat: Tensor) -> None:
        summary = summarise(flat, self.histogram.next_turn())
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
        self._take_range(*extremes_without_masks(flat, ()))
        masked = ~(flat.abs() < MASK_LIMITS[flat.dtype])
        summary = summarise(flat.masked_fill(masked, 0.0), self.histogram.next_turn())
        self.histogram.add(summary, torch.maximum(-self.min_val, self.max_val))

    def at_batch(self, index: int | None) -> None:
        """See :meth:`ObserverBase.at_batch`: where samples are taken depends on the batch."""
        self.histogram.turn = index

    def merge(self, found: Sequence[dict[str, Any]]) -> None:
        """See :meth:`ObserverBase.merge`."""
        super().merge(found)
        prefix = "histogram."
        self.histogram.load_state_dict(
            merged(
                [
                    {k.removeprefix(prefix): v for k, v in one.items() if k.startswith(prefix)}
                    for one in found
                ]
            )
        )

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """See :meth:`ObserverBase.calculate_qparams`."""
        if self.grid is None:
            return self._inside_bounds(*super().calculate_qparams())
        self.check_data()
        return self.calculate_together([self])[0]

    @property
    def together_with(self) -> Hashable:
        """See :attr:`ObserverBase.together_with`: histograms of one grid."""
        searches = type(self).calculate_qparams is HistogramObserver.calculate_qparams
        if self.grid is None or not searches:
            return None
        return HistogramObserver, self.grid, self.histogram.bins, self.dtype, self.qscheme

    @staticmethod
    def calculate_together(observers: Sequence[Any]) -> list[tuple[Tensor, Tensor]]:
        """See :meth:`ObserverBase.calculate_together`: one search for many histograms."""
        found = searched_qparams(observers)
        return [o._inside_bounds(*qparams) for o, qparams in zip(observers, found, strict=True)]

    def bounded(self, low: float, high: float) -> HistogramObserver:
        """See :meth:`ObserverBase.bounded`."""
        other = copy.deepcopy(self)
        other.low, other.high = max(low, self.low), min(high, self.high)
        return other

    @property
    def _is_bounded(self) -> bool:
        return (self.low, self.high) != (-INF, INF)

    def _inside_bounds(self, scale: Tensor, zero_point: Tensor) -> tuple[Tensor, Tensor]:
        """Cut the grid off at the bounds."""
        if not self._is_bounded:
            return scale, zero_point
        assert self.quant_min is not None and self.quant_max is not None
        ends = torch.cat([(q - zero_point) * scale for q in (self.quant_min, self.quant_max)])
        kept = ends.clamp(self.low, self.high)
        if torch.equal(ends, kept):
            return scale, zero_point
        return self._calculate_qparams(kept[:1], kept[1:])

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
        bounds = (
            f", low={self.low}, high={self.high}" if (self.low, self.high) != (-INF, INF) else ""
        )
        return f"{super().extra_repr()}, bins={self.histogram.bins}{bounds}"
