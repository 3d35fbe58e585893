"""The streaming histogram as a module: what it stores, when it counts, what it estimates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pt2q.numerics.histogram import (
    DEFAULT_BINS,
    SMALLEST_EXPONENT,
    Summary,
    counted,
    exponent_for,
    exponent_tensor,
    tail_counts,
    widened,
)

_MOST_WAITING = 32768
_ROWS = 4
# Up to this many values are kept as they are beside the counts: so few fit a grid by luck, and a
# search that sees their exact places finds it.
_FEW = 1024


def make_room(module: nn.Module, state_dict: dict[str, Any], prefix: str) -> None:
    """Give the buffers of ``module`` the shapes of those about to be loaded."""
    for name, buffer in module._buffers.items():
        saved = state_dict.get(prefix + name)
        if saved is not None and buffer is not None:
            module._buffers[name] = torch.empty_like(saved, device=buffer.device)


@dataclass(slots=True)
class _Waiting:
    """Summaries not counted yet, of one weight; outside the module, where access is cheap."""

    weight: int = 1
    size: int = 0
    largest: Tensor | float = 0.0
    values: list[Tensor] = field(default_factory=list)
    minima: list[Tensor] = field(default_factory=list)
    maxima: list[Tensor] = field(default_factory=list)


@dataclass(slots=True)
class _Totals:
    """How much was seen; whole numbers on the host."""

    calls: int = 0
    elements: int = 0
    samples: int = 0
    blocks: int = 0
    whole: int = 0


class StreamingHistogram(nn.Module):
    """The counts of what was seen, in bins whose width follows the range.

    Values wait in a list until there are enough to be worth counting. All that is stored is whole
    numbers, so what is counted when makes no difference.

    Args:
        bins: Number of bins, a power of two; half of them lie on either side of zero.

    Attributes:
        counts: int64 ``[1, bins]``, or ``[4, bins]`` once a large tensor was seen: values of small
            tensors, samples times what they stand for, block minima, block maxima.
        exponent: int32 scalar; a bin is ``2 ** exponent`` wide.
        zeros: int64 ``[2]``: exact zeros in the first two rows.
        few: float32 ``[n]``: all values as they are, while they are few.
        saved_totals: int64 ``[5]``: calls, elements sampled from, samples, blocks, elements counted
            whole, when last saved.
    """

    counts: Tensor
    exponent: Tensor
    zeros: Tensor
    few: Tensor
    saved_totals: Tensor

    def __init__(self, bins: int = DEFAULT_BINS) -> None:
        super().__init__()
        if bins < 64 or bins & (bins - 1):
            raise ValueError(f"expected bins to be a power of two from 64 up, found {bins}")
        self.bins = bins
        self.register_buffer("counts", torch.zeros(1, bins, dtype=torch.int64))
        self.register_buffer("exponent", torch.tensor(SMALLEST_EXPONENT, dtype=torch.int32))
        self.register_buffer("zeros", torch.zeros(2, dtype=torch.int64))
        self.register_buffer("few", torch.zeros(0))
        self.register_buffer("saved_totals", torch.zeros(5, dtype=torch.int64))
        self.totals = _Totals()
        self._waiting = _Waiting()

    def reset(self) -> None:
        """Forget all that was seen."""
        device = self.counts.device
        self._buffers["counts"] = torch.zeros(1, self.bins, dtype=torch.int64, device=device)
        self._buffers["zeros"] = torch.zeros(2, dtype=torch.int64, device=device)
        self._buffers["exponent"] = torch.full_like(self.exponent, SMALLEST_EXPONENT)
        self._buffers["few"] = torch.zeros(0, device=device)
        self.totals = _Totals()
        self._waiting = _Waiting()

    def add(self, summary: Summary, largest: Tensor | float) -> None:
        """Take in a tensor's summary.

        Args:
            summary: What was taken of the tensor; finite.
            largest: The largest magnitude in this tensor: a number if it is on the host; else a
                tensor, the largest so far.
        """
        waiting, totals = self._waiting, self.totals
        if waiting.weight != summary.weight:
            self.flush()
            waiting = self._waiting
            waiting.weight = summary.weight
        totals.calls += 1
        size = summary.values.shape[0]
        if summary.minima is None or summary.maxima is None:
            # The caller may write over a tensor that was taken whole.
            waiting.values.append(summary.values.clone())
            totals.whole += size
        else:
            waiting.values.append(summary.values)
            waiting.minima.append(summary.minima)
            waiting.maxima.append(summary.maxima)
            totals.elements += size * summary.weight
            totals.samples += size
            totals.blocks += summary.minima.shape[0]
        if isinstance(largest, Tensor) or isinstance(waiting.largest, Tensor):
            waiting.largest = largest
        else:
            waiting.largest = max(waiting.largest, largest)
        waiting.size += size
        if waiting.size >= _MOST_WAITING:
            self.flush()

    def flush(self) -> None:
        """Count what waits."""
        waiting, self._waiting = self._waiting, _Waiting(weight=self._waiting.weight)
        if not waiting.values:
            return
        values = torch.cat([*waiting.values, *waiting.minima, *waiting.maxima])
        zeros = waiting.size - torch.count_nonzero(values[: waiting.size])
        blocks = (values.shape[0] - waiting.size) // 2
        ends = [waiting.size, waiting.size + blocks, values.shape[0]] if blocks else [waiting.size]
        self._make_ready(values.device, sampled=blocks > 0)
        is_few = self.totals.samples == 0 and self.totals.whole <= _FEW
        self._buffers["few"] = torch.cat([self.few, values.float()]) if is_few else self.few[:0]
        found = counted(values, ends, self._widen(waiting.largest), self.bins)
        found[0] *= waiting.weight
        row = 1 if blocks else 0
        self.counts[row : row + len(ends)] += found
        self.zeros[row] += zeros * waiting.weight

    def _make_ready(self, device: torch.device, sampled: bool) -> None:
        """Have the buffers on ``device``, writable and with room for samples if need be."""
        if self.counts.device != device:
            self.to(device)
        if self.counts.is_inference():
            for name, buffer in self.named_buffers():
                self._buffers[name] = buffer.clone()
        if sampled and self.counts.shape[0] == 1:
            more = self.counts.new_zeros(_ROWS - 1, self.bins)
            self._buffers["counts"] = torch.cat([self.counts, more])

    def _widen(self, largest: Tensor | float) -> Tensor | float:
        """Make the bins wide enough for the largest value; return one over their width."""
        if isinstance(largest, Tensor):
            wanted = exponent_tensor(largest.nan_to_num(0.0, 0.0, 0.0), self.bins)
            exponent = torch.maximum(self.exponent, wanted)
            self._buffers["counts"] = widened(self.counts, exponent - self.exponent)
            self._buffers["exponent"] = exponent
            # 2 ** -exponent, exactly: on an accelerator a power need not be.
            return ((127 - exponent) << 23).view(torch.float32)
        old = int(self.exponent)
        new = max(old, exponent_for(largest, self.bins))
        if new > old:
            self._buffers["counts"] = widened(self.counts, new - old)
            self._buffers["exponent"] = torch.full_like(self.exponent, new)
        return 2.0**-new

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        """Save copies: counting goes on in place and must not reach what was saved."""
        self.flush()
        self._buffers["saved_totals"] = torch.tensor(astuple(self.totals))
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in self._buffers:
            destination[prefix + name] = destination[prefix + name].clone()

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        make_room(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.bins = self.counts.shape[1]
        self.totals = _Totals(*self.saved_totals.tolist())
        self._waiting = _Waiting()


def estimated_counts(
    histograms: Sequence[StreamingHistogram], low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the counts of all values but exact zeros, and the exponents, on the host.

    Zeros are exact on every grid and so have no say in the search.

    Args:
        histograms: N histograms of one number of bins.
        low: ``[N]`` smallest values.
        high: ``[N]`` largest values.

    Returns:
        float64 ``[N, bins]``, even bins covering ``[-bins / 2, bins / 2)``, and int32 ``[N]``.
    """
    for histogram in histograms:
        histogram.flush()
    zeros = torch.stack([h.zeros.cpu() for h in histograms]).double()
    exponent = torch.stack([h.exponent.cpu() for h in histograms])
    counts = torch.stack([h.counts[0].cpu() for h in histograms]).double()
    result = _even(counts, zeros[:, 0], low, high)
    large = [i for i, h in enumerate(histograms) if h.counts.shape[0] > 1]
    if not large:
        return result, exponent
    chosen = [histograms[i] for i in large]
    rows = torch.stack([h.counts[1:].cpu() for h in chosen]).double()
    sampled = _even(rows[:, 0], zeros[large, 1], low[large], high[large])
    elements, samples, blocks = (
        torch.tensor([astuple(h.totals)[1:4] for h in chosen]).double().unsqueeze(2).unbind(1)
    )
    half = counts.shape[1] // 2
    none = torch.zeros_like(blocks)
    below = torch.cat([none, rows[:, 1, 1:half].flip(1)], 1)
    above = torch.cat([none, rows[:, 2, half + 1 :]], 1)
    fraction = samples / elements
    lower = tail_counts(sampled[:, :half].flip(1), below, fraction, blocks).flip(1)
    upper = tail_counts(sampled[:, half:], above, fraction, blocks)
    result[large] += torch.cat([lower, upper], 1)
    return result, exponent


def few_values(
    histograms: Sequence[StreamingHistogram], exponent: Tensor
) -> tuple[list[int], Tensor | None]:
    """Return which of the histograms still hold all values, and those in bins, in rising order.

    Rows ``[M, n]`` of fewer values end in ``inf``.
    """
    chosen = [i for i, h in enumerate(histograms) if h.few.shape[0] > 0]
    if not chosen:
        return chosen, None
    rows = [torch.ldexp(histograms[i].few.cpu().double(), -exponent[i]) for i in chosen]
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=math.inf)
    return chosen, padded.sort(1).values


def _even(counts: Tensor, zeros: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return counts in bins of one width: the bin around zero, twice as wide, is split.

    Its values other than zeros go to the side that there is, or to both alike.
    """
    half = counts.shape[1] // 2
    centre = (counts[:, half] - zeros).clamp(min=0)
    share = torch.where(low >= 0, 1.0, torch.where(high <= 0, 0.0, 0.5))
    # Bin half - 1 + i is i on the negative side: each moves one place away from zero's old bin.
    below = torch.cat([counts[:, 1:half], (centre * (1 - share)).unsqueeze(1)], 1)
    above = torch.cat([(centre * share).unsqueeze(1), counts[:, half + 1 :]], 1)
    return torch.cat([below, above], 1)
