"""What XNNPACK's kernels take, as ExecuTorch's delegate reaches them.

Biases are handed over in float; the runtime quantizes them.
"""

from __future__ import annotations

from dataclasses import replace

from pt2q.quantizers.toolkit.table.kernel_limits import INT4, INT8, KernelLimits, TensorLimits
from pt2q.spec import PerAxis, PerGroup, PerTensor, PerToken

MIN_SCALE = 2.0**-60
"""The smallest scale: smaller ones have products that are no normal float32 numbers."""
DIMENSIONS = (1, 6)

ACTIVATION = TensorLimits(stored=(INT8,), min_scale=MIN_SCALE)
TOKENS = TensorLimits(stored=(INT8.scaled(PerToken),), min_scale=MIN_SCALE)
WEIGHT = TensorLimits(stored=(INT8.scaled(PerTensor, PerAxis),), min_scale=MIN_SCALE)
ONE_SCALE = TensorLimits(stored=(INT8,), min_scale=MIN_SCALE)

CONVOLUTION = KernelLimits(
    names=("XNNConv2d", "XNNDepthwiseConv2d"),
    activation=ACTIVATION,
    weight=WEIGHT,
    result=ACTIVATION,
)
# The runtime measures each image by itself, or each pixel under a window of 1.
DYNAMIC_CONVOLUTION = KernelLimits(
    names=("XNNConv2d",),
    activation=ACTIVATION,
    weight=replace(WEIGHT, stored=(INT8.scaled(PerAxis),)),
)
# Weights are [in, out / groups, ...].
TRANSPOSED = replace(CONVOLUTION, names=("XNNConvTranspose2d",), weight=replace(WEIGHT, axis=1))
DYNAMIC_TRANSPOSED = replace(
    DYNAMIC_CONVOLUTION,
    names=TRANSPOSED.names,
    weight=replace(WEIGHT, stored=(INT8.scaled(PerAxis),), axis=1),
)
GROUPED_TRANSPOSED = replace(TRANSPOSED, weight=ONE_SCALE)
LINEAR = KernelLimits(
    names=("XNNFullyConnected",),
    activation=ACTIVATION,
    weight=replace(WEIGHT, stored=(*WEIGHT.stored, INT4.scaled(PerAxis))),
    result=ACTIVATION,
)
DYNAMIC_LINEAR = replace(
    LINEAR,
    activation=TOKENS,
    weight=replace(WEIGHT, stored=(INT8.scaled(PerAxis), INT4.scaled(PerAxis, PerGroup))),
    result=None,
)
# Weights are [in, out]. With 4 bits the static kernel ends the process.
ADDMM = replace(LINEAR, weight=replace(WEIGHT, axis=1))
DYNAMIC_ADDMM = replace(
    DYNAMIC_LINEAR,
    weight=replace(WEIGHT, stored=(INT8.scaled(PerAxis), INT4.scaled(PerAxis)), axis=1),
)
# Without a bias the lowering of a product cannot find scales per channel.
PRODUCT = replace(LINEAR, weight=ONE_SCALE)


def elementwise(*names: str) -> KernelLimits:
    """A kernel without weights, from int8 to int8.

    Args:
        names: what the runtime calls it.
    """
    return KernelLimits(
        names=names, activation=ACTIVATION, result=ACTIVATION, dimensions=DIMENSIONS
    )
