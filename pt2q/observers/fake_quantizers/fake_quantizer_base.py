"""What fake quantizers share: two switches that a checkpoint holds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from pt2q.observers.protocol import has_data, range_has_data
from pt2q.spec.constructor import WithArgs


class FakeQuantizeBase(WithArgs, nn.Module, ABC):
    """Base of fake quantizers: observers that round what passes, with a gradient, for training.

    A subclass has ``forward`` and ``calculate_qparams``, and any arguments. What it does not say
    for itself is taken from the spec when it is inserted.

    Attributes:
        fake_quant_enabled, observer_enabled: 0 or 1; change them with the methods of the same
            name, or with `enable_fake_quant` and its kin. On an accelerator, which would have to be
            asked, writing into these buffers has no effect.
        activation_post_process: an observer, if it has one: it is told the node's name and asked
            whether it has seen data.
    """

    fake_quant_enabled: Tensor
    observer_enabled: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("fake_quant_enabled", torch.ones(1, dtype=torch.int64))
        self.register_buffer("observer_enabled", torch.ones(1, dtype=torch.int64))
        # What the buffers say, without asking a device: (observing, rounding).
        self._switches = (True, True)
        self._seen = self._versions()
        self._node_name = ""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` rounded to its grid, or ``x`` itself if that is switched off."""

    @abstractmethod
    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Return the parameters in use, float32 and int64."""

    @property
    def node_name(self) -> str:
        """The node whose output is watched, for messages."""
        return self._node_name

    @node_name.setter
    def node_name(self, name: str) -> None:
        self._node_name = name
        observer = getattr(self, "activation_post_process", None)
        if observer is not None:
            observer.node_name = name

    @property
    def has_data(self) -> bool:
        """Whether there are parameters: something was observed."""
        observer = getattr(self, "activation_post_process", None)
        return range_has_data(self) if observer is None else has_data(observer)

    @property
    def constant_input(self) -> bool:
        """Whether a constant is to be shown again before conversion; what was trained counts."""
        return False

    def _is_on(self) -> tuple[bool, bool]:
        """(observing, rounding); on a CPU what was written into the buffers counts, too."""
        if torch.compiler.is_compiling() or self.observer_enabled.device.type != "cpu":
            return self._switches
        versions = self._versions()
        if self._seen != versions:
            self._switches = bool(self.observer_enabled), bool(self.fake_quant_enabled)
            self._seen = versions
        return self._switches

    def _versions(self) -> tuple[int, ...] | None:
        """How often each switch was written to; None where that is not counted."""
        observing, rounding = self.observer_enabled, self.fake_quant_enabled
        if observing.is_inference() or rounding.is_inference():
            return None
        return observing._version, rounding._version

    def __getstate__(self) -> dict[str, Any]:
        # A copy has buffers of its own, which count anew.
        return {**self.__dict__, "_seen": None}

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._seen = None
        return super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]

    def _set_switches(self, observing: bool, rounding: bool) -> None:
        self.observer_enabled.fill_(int(observing))
        self.fake_quant_enabled.fill_(int(rounding))
        self._switches, self._seen = (observing, rounding), self._versions()

    def enable_fake_quant(self, enabled: bool = True) -> None:
        """Round, or let pass."""
        self._set_switches(self._is_on()[0], enabled)

    def disable_fake_quant(self) -> None:
        """Let pass what comes."""
        self.enable_fake_quant(False)

    def enable_observer(self, enabled: bool = True) -> None:
        """Follow the range, or keep the parameters as they are."""
        self._set_switches(enabled, self._is_on()[1])

    def disable_observer(self) -> None:
        """Keep the parameters as they are."""
        self.enable_observer(False)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._switches = bool(self.observer_enabled), bool(self.fake_quant_enabled)
        self._seen = self._versions()

    def extra_repr(self) -> str:
        """Return the state, for ``repr``."""
        observing, rounding = self._is_on()
        return f"fake_quant_enabled={rounding}, observer_enabled={observing}"
