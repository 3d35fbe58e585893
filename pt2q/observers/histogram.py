"""Scale and zero point with the smallest squared error."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from pt2q.ir.dtypes import FLOAT8_DTYPES, is_symmetric
from pt2q.numerics.extremes import MASK_LIMITS, extremes_without_masks
from pt2q.numerics.grid_error import Grid
from pt2q.numerics.histogram import DEFAULT_BINS
from pt2q.numerics.qparams import symmetric_zero_point
from pt2q.numerics.sampling import flattened, summarise
from pt2q.observers.histogram_search import searched_qparams
from pt2q.observers.min_max import MinMaxObserver
from pt2q.observers.streaming import StreamingHistogram

_BATCH = 8


class HistogramObserver(MinMaxObserver):
    """The scale and zero point with the smallest squared error, found on a histogram.

    The histogram is streamed (`pt2q.observers.streaming`) and searched (`pt2q.numerics.clipping`);
    the smallest and the largest value are kept exactly beside it. float8 and grids wider than any
    histogram (int32) use these alone.

    Args:
        bins: Number of bins, a power of two; half of them lie on either side of zero.
        **kwargs: As :class:`UniformQuantizationObserverBase`.
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
        self._take_range(*extremes_without_masks(flat, ()))
        masked = ~(flat.abs() < MASK_LIMITS[flat.dtype])
        summary = summarise(flat.masked_fill(masked, 0.0), self.histogram.totals.calls)
        self.histogram.add(summary, torch.maximum(-self.min_val, self.max_val))

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """See :meth:`ObserverBase.calculate_qparams`."""
        if self.grid is None:
            return super().calculate_qparams()
        self.check_data()
        return searched_qparams([self])[0]

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
        batches = (observers[i : i + _BATCH] for i in range(0, len(observers), _BATCH))
        return [found for batch in batches for found in searched_qparams(batch)]

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
