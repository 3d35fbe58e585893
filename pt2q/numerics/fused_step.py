"""The parameters that torch's fused moving-average operator gives.

Of arrays on the host, which take a tenth of the time of tensors as small as these; what has to
work on an accelerator takes tensors, too.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Below this, the operator keeps scales by itself.
_SMALLEST_STEP = 6.1e-5
OPERATOR_FLOOR = _SMALLEST_STEP / 2


def moving_average(running: Any, batch: Any, constant: float) -> Any:
    """``running + constant * (batch - running)``; the batch where ``running`` is infinite.

    Args:
        running, batch: float32 arrays or tensors of one shape.
        constant: the weight of the batch, in (0, 1].
    """
    module = torch if isinstance(running, Tensor) else np
    since = module.where(module.isinf(running), batch, running)
    return since + constant * (batch - since)


def moving_average_of_one(running: float, batch: float, constant: float) -> float:
    """`moving_average` of single numbers, rounded to float32 after each operation."""
    new = np.float32(batch)
    since = new if math.isinf(running) else np.float32(running)
    return float(since + np.float32(constant) * (new - since))


def symmetric_step(low: Any, high: Any, quant_min: int, quant_max: int) -> Any:
    """The scale with which ``torch.fused_moving_avg_obs_fake_quant`` covers a symmetric range.

    With ``m = (quant_max - quant_min) // 2``, the magnitude of one step is
    ``max(-low / (m + 1), high / m)``, of which ``2 m + 1`` steps are spread over
    ``quant_max - quant_min``; at least 6.1e-5, and 0.1 for a range of zero.

    Args:
        low, high: the range, float32 arrays or tensors; zero is added to it.
        quant_min, quant_max: the integers used.
    """
    module: Any = torch if isinstance(low, Tensor) else np
    half, steps = (quant_max - quant_min) // 2, quant_max - quant_min
    largest = module.maximum(low / -(half + 1), high / half)
    largest = module.where(largest > 0.0, largest, 0.0)
    # The operator rounds each end to float32 and takes the rest in double precision.
    ends = (module.asarray(largest * n, dtype=module.float64) for n in (half, half + 1))
    step = module.asarray(sum(ends) / steps, dtype=module.float32)
    floored = module.where(step > _SMALLEST_STEP, step, _SMALLEST_STEP)
    return module.where(step == 0.0, 0.1, floored)


def affine_parameters(
    low: float, high: float, quant_min: int, quant_max: int
) -> tuple[float, int] | None:
    """Scale and zero point with which the operator covers a range that need not be symmetric.

    ``scale = (high - low) / (quant_max - quant_min)``, a float32; the zero point is counted, in
    double precision, from that end whose distance from zero, in steps, falls short of that of the
    integers' end by less.

    Args:
        low, high: the range; zero is added to it.
        quant_min, quant_max: the integers used.

    Returns:
        Both; None for a range so narrow that the operator widens it, or that is not finite.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32((high - low) / (quant_max - quant_min)))
    if not _SMALLEST_STEP <= scale < math.inf:
        return None
    below, above = low / scale, high / scale
    from_low = abs(quant_min) - abs(below) < abs(quant_max) - abs(above)
    zero_point = quant_min - below if from_low else quant_max - above
    return scale, round(min(max(zero_point, quant_min), quant_max))
