"""What is frozen in quantization-aware training, and when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from pt2q.observers import disable_fake_quant, disable_observer, enable_fake_quant
from pt2q.training.batch_statistics import freeze_batch_norm_statistics


@dataclass
class QATSchedule:
    """Says in which step fake quantization starts, and ranges and statistics stop to move.

    Call `step` once before every training step. The schedule has a state dict, as an optimizer
    has; the model's own checkpoint holds all else.

    Args:
        model: a prepared module.
        fake_quant_from: before this step, observers watch and nothing is rounded.
        freeze_observers_after: after that many steps, ranges stay; None: never.
        freeze_statistics_after: after that many steps, batch-norm statistics stay; None: never.
        steps: how many steps were taken.
    """

    model: nn.Module
    fake_quant_from: int = 0
    freeze_observers_after: int | None = None
    freeze_statistics_after: int | None = None
    steps: int = 0

    def step(self) -> None:
        """Make the switches that are due at this step."""
        if self.fake_quant_from > 0 and self.steps == 0:
            self.model.apply(disable_fake_quant)
        if self.fake_quant_from > 0 and self.steps == self.fake_quant_from:
            self.model.apply(enable_fake_quant)
        if self.steps == self.freeze_observers_after:
            self.model.apply(disable_observer)
        if self.steps == self.freeze_statistics_after:
            freeze_batch_norm_statistics(self.model)
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to hold."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint: switches that were made by then are made again.

        Fake-quantize modules know theirs from the model's own state.

        Args:
            state: what `state_dict` gave.
        """
        self.steps = int(state["steps"])
        frozen = self.freeze_statistics_after
        if frozen is not None and self.steps > frozen:
            freeze_batch_norm_statistics(self.model)
