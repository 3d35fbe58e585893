"""The switches of fake quantizers that learn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pt2q.observers.fake_quantizers.fake_quantizer_base import FakeQuantizeBase


class LearningSwitches(FakeQuantizeBase):
    """One more switch: whether training moves the parameters. It excludes the observer's.

    Attributes:
        learning_enabled: 0 or 1.
    """

    learning_enabled: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("learning_enabled", torch.zeros(1, dtype=torch.uint8))

    def _let_learn(self) -> None:
        """Give gradients to what is learned; for subclasses."""

    @property
    def static_enabled(self) -> Tensor:
        """Another name of ``observer_enabled``."""
        return self.observer_enabled

    def _set_learning(self, enabled: bool) -> None:
        self.learning_enabled.fill_(int(enabled))
        self._let_learn()

    def enable_range_learning(self) -> None:
        """Stop observing; from now on the optimizer moves the parameters."""
        self._set_learning(True)
        self.disable_observer()

    def disable_range_learning(self) -> None:
        """Keep the parameters as they are, if the observer is off, too."""
        self._set_learning(False)

    def enable_observer(self, enabled: bool = True) -> None:
        """Take the parameters from the observed range at every call, or stop to; no learning."""
        super().enable_observer(enabled)
        if enabled:
            self.disable_range_learning()

    def enable_param_learning(self) -> Any:
        """Learn, and round. Returns the module, as all switches from here on."""
        return self.toggle_observer_update(False).toggle_qparam_learning().toggle_fake_quant()

    def enable_static_estimate(self) -> Any:
        """Observe, and round."""
        return self.toggle_qparam_learning(False).toggle_fake_quant().toggle_observer_update()

    def enable_static_observation(self) -> Any:
        """Observe, and let pass what comes."""
        return self.toggle_qparam_learning(False).toggle_fake_quant(False).toggle_observer_update()

    def toggle_qparam_learning(self, enabled: bool = True) -> Any:
        """Learn, or not."""
        self._set_learning(enabled)
        return self

    def toggle_observer_update(self, enabled: bool = True) -> Any:
        """Observe, or not."""
        FakeQuantizeBase.enable_observer(self, enabled)
        return self

    def toggle_fake_quant(self, enabled: bool = True) -> Any:
        """Round, or let pass."""
        self.enable_fake_quant(enabled)
        return self

    def extra_repr(self) -> str:
        """Return the state, for ``repr``."""
        return f"{super().extra_repr()}, learning_enabled={bool(self.learning_enabled)}"
