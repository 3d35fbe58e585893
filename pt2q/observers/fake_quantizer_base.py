"""What fake quantizers share: two switches that a checkpoint holds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pt2q.spec.constructor import PartialWrapper, with_args


class FakeQuantizeBase(nn.Module, ABC):
    """Base of fake quantizers: observers that round what passes, with a gradient, for training.

    A subclass has ``forward`` and ``calculate_qparams``, and any arguments.

    Attributes:
        fake_quant_enabled, observer_enabled: 0 or 1; change them with the methods of the same
            name, or with `enable_fake_quant` and its kin.
    """

    fake_quant_enabled: Tensor
    observer_enabled: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("fake_quant_enabled", torch.ones(1, dtype=torch.int64))
        self.register_buffer("observer_enabled", torch.ones(1, dtype=torch.int64))
        # What the buffers say, without asking a device: (observing, rounding).
        self._switches = (True, True)

    @classmethod
    def with_args(cls, **kwargs: Any) -> PartialWrapper:
        """Return a constructor of this class with some arguments filled in."""
        return with_args(cls, **kwargs)

    @classmethod
    def with_callable_args(cls, **kwargs: Callable[[], Any]) -> PartialWrapper:
        """Return a constructor that calls these for its arguments whenever it is called."""
        return with_args(cls).with_callable_args(**kwargs)

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` rounded to its grid, or ``x`` itself if that is switched off."""

    @abstractmethod
    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Return the parameters in use, float32 and int64."""

    def _is_on(self) -> tuple[bool, bool]:
        """(observing, rounding)."""
        return self._switches

    def enable_fake_quant(self, enabled: bool = True) -> None:
        """Round, or let pass."""
        self.fake_quant_enabled.fill_(int(enabled))
        self._switches = (self._switches[0], enabled)

    def disable_fake_quant(self) -> None:
        """Let pass what comes."""
        self.enable_fake_quant(False)

    def enable_observer(self, enabled: bool = True) -> None:
        """Follow the range, or keep the parameters as they are."""
        self.observer_enabled.fill_(int(enabled))
        self._switches = (enabled, self._switches[1])

    def disable_observer(self) -> None:
        """Keep the parameters as they are."""
        self.enable_observer(False)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._switches = bool(self.observer_enabled), bool(self.fake_quant_enabled)

    def extra_repr(self) -> str:
        """Return the state, for ``repr``."""
        observing, rounding = self._is_on()
        return f"fake_quant_enabled={rounding}, observer_enabled={observing}"
