"""Observers that take every tensor into statistics: when they look, and when they need not."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from pt2q.ir.storage import place_of
from pt2q.ir.torch_private import version_of
from pt2q.observers.base.resizing import make_room
from pt2q.observers.base.uniform import UniformQuantizationObserverBase


class StatisticsObserver(UniformQuantizationObserverBase):
    """Base of observers that collect: a subclass says what it takes of a tensor, in ``_observe``.

    It makes no host synchronisation on an accelerator; its buffers follow the device of its input.
    A NaN is an error that names the node.

    Args:
        **kwargs: As :class:`UniformQuantizationObserverBase`.
    """

    collects = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._last_input: tuple[Any, ...] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Observe ``x`` and return it, the same object.

        Raises:
            TypeError: ``x`` does not hold floating point numbers.
            NonFiniteActivationError: ``x`` holds a NaN (on an accelerator, where looking would
                stall it, ``calculate_qparams`` raises it).
        """
        if not self.observer_enabled:
            return x
        if not x.is_floating_point():
            raise TypeError(f"{self._where()} expected floating point numbers, found {x.dtype}")
        if x.numel() == 0 or (self.constant_input and not self._input_changed(x)):
            return x
        if not torch.is_inference_mode_enabled():
            self._observe(x.detach())
            return x
        # Statistics must be ordinary tensors, also when the model runs in inference mode.
        with torch.inference_mode(False):
            self._observe(x.detach())
        return x

    def _input_changed(self, x: Tensor) -> bool:
        """Whether a constant input is not the one last seen; forgets the old one if so."""
        this = (*place_of(x), version_of(x))
        if this == self._last_input:
            return False
        self.reset()
        self._last_input = this
        return True

    @abstractmethod
    def _observe(self, x: Tensor) -> None:
        """Take ``x``, which is not empty, into the statistics."""

    def reset(self) -> None:
        """Forget all that was observed."""
        self._last_input = None

    def __getstate__(self) -> dict[str, Any]:
        # The address of a tensor means nothing in a copy.
        return {**self.__dict__, "_last_input": None}

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        self._last_input = None
        make_room(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
