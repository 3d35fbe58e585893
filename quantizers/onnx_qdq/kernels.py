"""What the operators in integers take that ONNX Runtime, OpenVINO and TensorRT make of a file."""

from __future__ import annotations

from dataclasses import replace

from pt2q.quantizers.toolkit.config import EPS
from pt2q.quantizers.toolkit.table.kernel_limits import (
    INT8,
    INT16,
    UINT8,
    KernelLimits,
    TensorLimits,
)

MIN_SCALE = EPS

WEIGHT = TensorLimits(stored=(INT8,), per_channel=True, min_scale=MIN_SCALE)
# int16 is read and computed in float.
ACTIVATION = TensorLimits(stored=(UINT8, INT16), min_scale=MIN_SCALE)
SYMMETRIC = TensorLimits(stored=(INT8,), symmetric=True, min_scale=MIN_SCALE)


def weighted(activation: TensorLimits, *names: str, axis: int = 0) -> KernelLimits:
    """A product with a constant weight.

    Args:
        activation: what it takes as input and result.
        names: what the runtime calls it.
        axis: where the output channels of its weight lie.
    """
    return KernelLimits(
        names=names,
        activation=activation,
        weight=replace(WEIGHT, axis=axis, symmetric=activation.symmetric),
        result=activation,
        float_activation=True,
    )


def unweighted(activation: TensorLimits, *names: str) -> KernelLimits:
    """An operator on activations alone.

    Args:
        activation: what it takes as input and result.
        names: what the runtime calls it.
    """
    return KernelLimits(names=names, activation=activation, result=activation)
