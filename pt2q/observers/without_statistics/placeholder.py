"""Observers of tensors whose parameters are not found by watching."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pt2q.errors import NoDataError
from pt2q.observers.base.uniform import UniformQuantizationObserverBase
from pt2q.spec.granularity import Granularity, PerToken
from pt2q.spec.resolved_granularity import as_granularity


class PlaceholderObserver(UniformQuantizationObserverBase):
    """Marks a tensor whose parameters are found at run time, or that is only converted.

    Args:
        per_token: Dynamic parameters for each token (the last axis) and not for the tensor.
        granularity: The same in other words: `PerToken` or `PerTensor`.
        **kwargs: As :class:`UniformQuantizationObserverBase`.
    """

    stateless = True

    def __init__(
        self, *, per_token: bool = False, granularity: Granularity | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.per_token = per_token or as_granularity(granularity) == PerToken()

    @property
    def granularity(self) -> Granularity:
        """How much of the tensor shares a scale."""
        return PerToken() if self.per_token else super().granularity

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` and take no notice."""
        return x

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

    quantizes = False
