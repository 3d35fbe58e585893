"""What the operators in integers take that ONNX Runtime, OpenVINO and TensorRT make of a file."""

from __future__ import annotations

from dataclasses import replace

from pt2q.quantizers.toolkit.table.kernel_limits import (
    INT8,
    INT16,
    UINT8,
    KernelLimits,
    TensorLimits,
)
from pt2q.spec import PerAxis, PerTensor

MIN_SCALE = 2.0**-60
"""The smallest scale: smaller ones have products that are no normal float32 numbers."""

WEIGHT = TensorLimits(stored=(INT8.scaled(PerTensor, PerAxis),), min_scale=MIN_SCALE)
# int16 is read and computed in float.
ACTIVATION = TensorLimits(stored=(UINT8, INT16), min_scale=MIN_SCALE)
AT_RUN_TIME = TensorLimits(stored=(UINT8,), min_scale=MIN_SCALE)
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
