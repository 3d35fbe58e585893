"""Fake quantization with parameters known beforehand."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pt2q.observers.fake_quantizers.fake_quantizer import FakeQuantize
from pt2q.observers.without_statistics.fixed import FixedQParamsObserver


class FixedQParamsFakeQuantize(FakeQuantize):
    """Fake-quantize with parameters known beforehand.

    Args:
        observer: class of an observer that gives fixed parameters.
        **observer_kwargs: for the observer (``scale``, ``zero_point``, ``dtype``, ...).
    """

    def __init__(self, observer: Any = FixedQParamsObserver, **observer_kwargs: Any) -> None:
        super().__init__(observer, **observer_kwargs)
        self._set_qparams(*self.activation_post_process.calculate_qparams())

    def _observe(self, x: Tensor) -> None:
        """Take no notice: the parameters are fixed."""
