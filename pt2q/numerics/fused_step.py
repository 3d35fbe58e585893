"""The scale that torch's fused moving-average operator gives."""

from __future__ import annotations

import torch
from torch import Tensor

# Below this, the operator keeps scales by itself.
_SMALLEST_STEP = 6.1e-5
OPERATOR_FLOOR = _SMALLEST_STEP / 2


def symmetric_step(low: Tensor, high: Tensor, quant_min: int, quant_max: int) -> Tensor:
    """The scale with which ``torch.fused_moving_avg_obs_fake_quant`` covers a symmetric range.

    With ``m = (quant_max - quant_min) // 2``, the magnitude of one step is
    ``max(-low / (m + 1), high / m)``, of which ``2 m + 1`` steps are spread over
    ``quant_max - quant_min``; at least 6.1e-5, and 0.1 for a range of zero.

    Args:
        low, high: the range; zero is added to it.
        quant_min, quant_max: the integers used.
    """
    half, steps = (quant_max - quant_min) // 2, quant_max - quant_min
    below, above = -low.clamp(max=0.0) / (half + 1), high.clamp(min=0.0) / half
    largest = torch.maximum(below, above).double()
    span = (largest * half).float().double() - (largest * -(half + 1)).float().double()
    step = (span / steps).float()
    return torch.where(step == 0.0, 0.1, step.clamp(min=_SMALLEST_STEP))
