"""Moving averages of the smallest and the largest value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pt2q.observers.min_max.range_observer import RangeObserver

Entry = tuple[int, Tensor, Tensor]
"""A batch, with the smallest and the largest value of one call in it."""


def in_order(found: Sequence[dict[str, Any]]) -> list[Entry]:
    """The calls that several have kept for later, in the order of the batches.

    Args:
        found: `statistics` of each.
    """
    return sorted((e for one in found for e in one["journal"]), key=lambda entry: int(entry[0]))


class MovingAverageObserver(RangeObserver):
    """Running range ``r += c * (batch - r)``; the first batch is taken as it is.

    Args:
        averaging_constant: ``c``, in ``(0, 1]``; 1 keeps the last batch alone.
        **kwargs: As :class:`UniformQuantizationObserverBase`.
    """

    def __init__(self, *, averaging_constant: float = 0.01, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 < averaging_constant <= 1:
            raise ValueError(
                f"expected an averaging_constant in (0, 1], found {averaging_constant}"
            )
        self.averaging_constant = averaging_constant
        # Where others see other batches: (batch, smallest, largest) of each call, averaged later.
        self._batch: int | None = None
        self._journal: list[Entry] = []

    def at_batch(self, index: int | None) -> None:
        """See :meth:`ObserverBase.at_batch`: an average depends on the order of all batches."""
        self._batch = index
        if index is None:
            self._journal = []

    @property
    def deferred(self) -> bool:
        """See :attr:`ObserverBase.deferred`."""
        return bool(self._journal)

    def _take_range(self, low: Tensor, high: Tensor) -> None:
        if not self.keep(low, high):
            super()._take_range(low, high)

    def keep(self, low: Tensor, high: Tensor) -> bool:
        """Keep a range for later, if what comes belongs to a batch; says whether it does.

        Args:
            low, high: the smallest and the largest value.
        """
        if self._batch is None:
            return False
        self._journal.append((self._batch, low.clone(), high.clone()))
        return True

    def statistics(self) -> dict[str, Any]:
        """See :meth:`ObserverBase.statistics`."""
        journal = [(batch, low.cpu(), high.cpu()) for batch, low, high in self._journal]
        return {**super().statistics(), "journal": journal}

    def restore(self, statistics: dict[str, Any]) -> None:
        """See :meth:`ObserverBase.restore`."""
        super().restore(statistics)
        self._journal = list(statistics["journal"])

    def merge(self, found: Sequence[dict[str, Any]]) -> None:
        """See :meth:`ObserverBase.merge`: the batches in their order.

        Of averages that are formed already, the smallest and the largest count.
        """
        entries = in_order(found)
        self._batch, self._journal = None, []
        if not entries:
            super().merge(found)
        for _, low, high in entries:
            self._take_range(low.to(self.min_val.device), high.to(self.min_val.device))

    def reset(self) -> None:
        """See :meth:`ObserverBase.reset`."""
        super().reset()
        self._journal = []

    def _merge(self, old: Tensor, new: Tensor, extreme: Any) -> Tensor:
        averaged = old + self.averaging_constant * (new - old)
        averaged = torch.where(torch.isinf(old), new, averaged)
        return torch.where(torch.isinf(new), old, averaged)

    def extra_repr(self) -> str:
        """Return the settings, for ``repr``."""
        return f"{super().extra_repr()}, averaging_constant={self.averaging_constant}"


class MovingAverageMinMaxObserver(MovingAverageObserver):
    """Moving averages of the smallest and the largest value of each batch."""


class MovingAveragePerChannelMinMaxObserver(MovingAverageObserver):
    """Moving averages of the smallest and the largest value of each batch, per channel."""

    default_qscheme = torch.per_channel_affine
    per_channel = True
