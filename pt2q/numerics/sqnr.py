"""The quality of an approximation."""

from __future__ import annotations

import torch
from torch import Tensor


def sqnr(reference: Tensor, value: Tensor) -> Tensor:
    """Return the signal to quantization noise ratio in dB, a float64 scalar tensor.

    ``10 * log10(sum(reference ** 2) / sum((reference - value) ** 2))``: infinite where the two
    are equal, minus infinite where the reference is zero and the value is not.
    """
    signal = reference.detach().to(torch.float64)
    noise = (signal - value.detach().to(torch.float64)).square().sum()
    ratio = 10.0 * torch.log10(signal.square().sum() / noise)
    return torch.where(noise == 0, torch.full_like(noise, torch.inf), ratio)
