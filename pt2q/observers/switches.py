"""Switches for all observers and fake quantizers of a model, by ``model.apply``."""

from __future__ import annotations

from torch import nn

from pt2q.observers.base.observer_base import ObserverBase
from pt2q.observers.fake_quantizers.learning_switches import LearningSwitches


def _switch(module: nn.Module, method: str, enabled: bool) -> None:
    switch = getattr(module, method, None)
    if callable(switch):
        switch(enabled)


def enable_observer(module: nn.Module, enabled: bool = True) -> None:
    """Let observers and fake quantizers follow ranges; for ``model.apply(enable_observer)``."""
    if isinstance(module, ObserverBase):
        module.observer_enabled = enabled
    else:
        _switch(module, "enable_observer", enabled)


def disable_observer(module: nn.Module) -> None:
    """Keep ranges and parameters as they are; for ``model.apply(disable_observer)``."""
    enable_observer(module, False)


def enable_fake_quant(module: nn.Module, enabled: bool = True) -> None:
    """Let fake quantizers round; for ``model.apply(enable_fake_quant)``."""
    _switch(module, "enable_fake_quant", enabled)


def disable_fake_quant(module: nn.Module) -> None:
    """Let fake quantizers pass what comes; for ``model.apply(disable_fake_quant)``."""
    enable_fake_quant(module, False)


def enable_range_learning(module: nn.Module) -> None:
    """Let fake quantizers that can learn; for ``model.apply(enable_range_learning)``."""
    if isinstance(module, LearningSwitches):
        module.enable_range_learning()


def disable_range_learning(module: nn.Module) -> None:
    """Let them keep what they learned; for ``model.apply(disable_range_learning)``."""
    if isinstance(module, LearningSwitches):
        module.disable_range_learning()
