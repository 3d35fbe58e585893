"""The streaming histogram as a module: what it stores, and when it counts."""

from __future__ import annotations

import copy
from dataclasses import astuple
from typing import Any

import torch
from torch import Tensor

from pt2q.numerics.histogram import (
    DEFAULT_BINS,
    SMALLEST_EXPONENT,
    counted,
    exponent_for,
    exponent_tensor,
    nonzeros,
    widened,
    with_rows,
)
from pt2q.numerics.sampling import Summary
from pt2q.observers.base.plain_attributes import PlainAttributes
from pt2q.observers.base.resizing import make_room
from pt2q.observers.histogram.waiting import Totals, Waiting

_MOST_WAITING = 32768
# Up to this many values are kept as they are, uncounted: so few fit a grid by luck, and a search
# that sees their exact places finds it.
MOST_KEPT = 1024


class StreamingHistogram(PlainAttributes):
    """The counts of what was seen, in bins whose width follows the range.

    Values wait in a list until there are enough to be worth counting. All that is stored is whole
    numbers, so what is counted when makes no difference.

    Args:
        bins: Number of bins, a power of two; half of them lie on either side of zero.

    Attributes:
        counts: int64 ``[1, bins]``, or ``[4, bins]`` once a large tensor was seen: values of small
            tensors, samples times what they stand for, block minima, block maxima. ``[0, bins]``
            while all values are in ``few``.
        exponent: int32 scalar; a bin is ``2 ** exponent`` wide.
        zeros: int64 ``[2]``: exact zeros in the first two rows.
        few: float32 ``[n]``: all values as they are, while they are few.
        turn: a batch's number among all, where others see other batches.
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
        self._buffers |= self._empty(torch.device("cpu"))
        self.totals = Totals()
        self.turn: int | None = None
        self._waiting = Waiting()

    def next_turn(self) -> int:
        """Return a number that says where to take samples; it moves from tensor to tensor.

        How many were seen here or, where others see other batches, the batch's number.
        """
        if self.turn is None:
            return self.totals.calls
        self.turn += 1
        return self.turn - 1

    def _empty(self, device: torch.device) -> dict[str, Tensor | None]:
        """Return the buffers of a histogram that saw nothing."""
        return {
            "counts": torch.zeros(0, self.bins, dtype=torch.int64, device=device),
            "exponent": torch.tensor(SMALLEST_EXPONENT, dtype=torch.int32, device=device),
            "zeros": torch.zeros(2, dtype=torch.int64, device=device),
            "few": torch.zeros(0, device=device),
            "saved_totals": torch.zeros(5, dtype=torch.int64, device=device),
        }

    def reset(self) -> None:
        """Forget all that was seen."""
        self._buffers |= self._empty(self.counts.device)
        self.totals = Totals()
        self._waiting = Waiting()

    def add(self, summary: Summary, largest: Tensor | float) -> None:
        """Take in a tensor's summary.

        Args:
            summary: What was taken of the tensor; finite.
            largest: The largest magnitude in this tensor: a number if it is on the host; else a
                tensor, the largest so far.
        """
        if self._waiting.weight != summary.weight:
            self.flush()
            self._waiting.weight = summary.weight
        self._waiting.take(summary, largest)
        self.totals.take(summary)
        if self._waiting.size >= _MOST_WAITING:
            self.flush()

    def add_whole(self, flat: Tensor, largest: float) -> None:
        """Take in a small tensor as it is.

        Args:
            flat: finite, ``[n]``, float32 on the host.
            largest: The largest magnitude in it.
        """
        waiting, totals, size = self._waiting, self.totals, flat.shape[0]
        if waiting.weight != 1:
            self.flush()
            waiting = self._waiting = Waiting()
        waiting.take_whole(flat, largest)
        totals.calls += 1
        totals.whole += size
        if self.turn is not None:
            self.turn += 1
        if waiting.size >= _MOST_WAITING:
            self.flush()

    def flush_few(self) -> bool:
        """Keep what waits as it is, if all values are few; says whether they are."""
        if self._are_few or self._waiting.size == 0:
            self.flush()
            return self.few.shape[0] > 0
        return False

    @property
    def _are_few(self) -> bool:
        """Whether all values are few enough to be kept, and none is counted."""
        few = self.totals.samples == 0 and self.totals.whole <= MOST_KEPT
        return few and self.counts.shape[0] == 0

    def all_counted(self) -> StreamingHistogram:
        """A histogram of the same values whose counts say all; this one stays as it is."""
        if self._waiting.size == 0 and self.few.shape[0] == 0:
            return self
        result = copy.copy(self)
        kept = {name: self._buffers[name] for name in ("exponent", "saved_totals")}
        written = {name: getattr(self, name).clone() for name in ("counts", "zeros", "few")}
        result.__dict__["_buffers"] = kept | written
        result.flush()
        result.count_kept()
        return result

    def flush(self) -> None:
        """Count what waits, or keep it while it is little."""
        waiting, self._waiting = self._waiting, Waiting(weight=self._waiting.weight)
        waiting.close()
        if not waiting.values:
            return
        values = torch.cat([*waiting.values, *waiting.minima, *waiting.maxima])
        self._make_ready(values.device)
        if self._are_few:
            self._widen(waiting.largest)
            self._buffers["few"] = torch.cat([self.few, values.float()])
            return
        self.count_kept(waiting.largest)
        self._count(values, waiting)

    def count_kept(self, largest: Tensor | float = 0.0) -> None:
        """Count values that were only kept, so that counts say all.

        Args:
            largest: As for :meth:`add`, of what is about to be counted.
        """
        few, self._buffers["few"] = self.few, self.few[:0]
        if self.counts.shape[0] == 0 and few.shape[0] > 0:
            self._count(few, Waiting(size=few.shape[0], largest=largest))

    def _count(self, values: Tensor, waiting: Waiting) -> None:
        """Count values, block minima and block maxima; ``values`` may be written over."""
        zeros = waiting.size - nonzeros(values[: waiting.size])
        blocks = (values.shape[0] - waiting.size) // 2
        ends = [waiting.size, waiting.size + blocks, values.shape[0]] if blocks else [waiting.size]
        found = counted(values, ends, self._widen(waiting.largest), self.bins)
        found[0] *= waiting.weight
        row = 1 if blocks else 0
        self._buffers["counts"] = with_rows(self.counts, found, row)
        self.zeros[row] += zeros * waiting.weight

    def _make_ready(self, device: torch.device) -> None:
        """Have the buffers on ``device`` and writable."""
        if self.counts.device != device:
            self.to(device)
        if self.counts.is_inference():
            for name, buffer in self.named_buffers():
                self._buffers[name] = buffer.clone()

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
        self.totals = Totals(*self.saved_totals.tolist())
        self._waiting = Waiting()
