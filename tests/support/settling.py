"""Batch norms with uneven statistics and parameters: a new one hardly changes a value."""

from __future__ import annotations

from torch import nn

Range = tuple[float, float]


def settled(
    model: nn.Module,
    *,
    mean: float = 1.0,
    variance: Range = (0.5, 2.0),
    scale: Range = (0.5, 1.5),
    shift: float = 1.0,
) -> nn.Module:
    """A model in evaluation mode, its batch norms drawn at random.

    Args:
        mean: standard deviation of the running means.
        variance: bounds of the running variances.
        scale: bounds of the weights.
        shift: standard deviation of the biases.
    """
    for module in model.modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue
        if module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_(0.0, mean)
            module.running_var.uniform_(*variance)
        if module.affine:
            nn.init.uniform_(module.weight, *scale)
            nn.init.normal_(module.bias, 0.0, shift)
    return model.eval()
