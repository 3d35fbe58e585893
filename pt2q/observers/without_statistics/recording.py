"""Observers that change nothing in the converted model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pt2q.errors import NoDataError
from pt2q.observers.base.observer_base import ObserverBase


class RecordingObserver(ObserverBase):
    """Keeps a copy of every tensor that passes, for debugging; conversion leaves it out.

    Args:
        dtype: Carried along.

    Attributes:
        tensor_val: The tensors.
    """

    quantizes = False

    def __init__(self, dtype: torch.dtype = torch.uint8) -> None:
        super().__init__(dtype)
        self.tensor_val: list[Tensor] = []
        self._batch = 0
        self._batches: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        """Keep a copy of ``x`` and return ``x``."""
        if self.observer_enabled:
            self.tensor_val.append(x.detach().clone())
            self._batches.append(self._batch)
        return x

    def at_batch(self, index: int | None) -> None:
        """See `ObserverBase.at_batch`."""
        self._batch = index or 0

    def statistics(self) -> dict[str, Any]:
        """See `ObserverBase.statistics`."""
        return {"batches": self._batches, "tensors": [x.cpu() for x in self.tensor_val]}

    def restore(self, statistics: dict[str, Any]) -> None:
        """See `ObserverBase.restore`."""
        self._batches = list(statistics["batches"])
        self.tensor_val = list(statistics["tensors"])

    def merge(self, found: Sequence[dict[str, Any]]) -> None:
        """See `ObserverBase.merge`: the tensors in the order of their batches."""
        pairs = [p for one in found for p in zip(one["batches"], one["tensors"], strict=True)]
        pairs.sort(key=lambda pair: int(pair[0]))
        self._batches, self.tensor_val = [b for b, _ in pairs], [x for _, x in pairs]

    def get_tensor_value(self) -> list[Tensor]:
        """Return the tensors kept so far."""
        return self.tensor_val

    def reset(self) -> None:
        """Forget the tensors."""
        self.tensor_val, self._batches = [], []

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Raise: it finds no parameters."""
        raise NoDataError(f"{self._where()} it records tensors and finds no parameters")


class ReuseInputObserver(ObserverBase):
    """Stands for the observer of an operator's input; here sharing is said with a spec.

    It takes no notice and conversion leaves it out: annotate with a `SharedQuantizationSpec`.
    """

    quantizes = False
    stateless = True

    def __init__(self) -> None:
        super().__init__(torch.uint8)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        return x

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Raise: it has no parameters of its own."""
        raise NoDataError(
            f"{self._where()} it has no parameters of its own; annotate the tensor with a "
            "SharedQuantizationSpec of the input's"
        )
