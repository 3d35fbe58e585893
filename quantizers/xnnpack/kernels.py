"""What XNNPACK's kernels take, as ExecuTorch's delegate reaches them.

``MIN_SCALE`` is the floor of scales. Biases are handed over in float; the runtime quantizes them.
"""

from __future__ import annotations

from dataclasses import replace

from pt2q.quantizers.toolkit.config import EPS
from pt2q.quantizers.toolkit.table.kernel_limits import INT4, INT8, KernelLimits, TensorLimits

MIN_SCALE = EPS
DIMENSIONS = (1, 6)

ACTIVATION = TensorLimits(stored=(INT8,), min_scale=MIN_SCALE)
WEIGHT = TensorLimits(stored=(INT8,), per_channel=True, min_scale=MIN_SCALE)

CONVOLUTION = KernelLimits(
    names=("XNNConv2d", "XNNDepthwiseConv2d"),
    activation=ACTIVATION,
    weight=WEIGHT,
    result=ACTIVATION,
)
# Weights are [in, out / groups, ...].
TRANSPOSED = replace(CONVOLUTION, names=("XNNConvTranspose2d",), weight=replace(WEIGHT, axis=1))
GROUPED_TRANSPOSED = replace(TRANSPOSED, weight=replace(WEIGHT, per_channel=False))
LINEAR = KernelLimits(
    names=("XNNFullyConnected",),
    activation=ACTIVATION,
    weight=replace(WEIGHT, stored=(INT8, INT4)),
    result=ACTIVATION,
)
DYNAMIC_LINEAR = replace(
    LINEAR, weight=replace(WEIGHT, stored=(INT8, INT4), per_tensor=False), result=None
)
# Weights are [in, out].
ADDMM = replace(LINEAR, weight=replace(WEIGHT, axis=1))
DYNAMIC_ADDMM = replace(DYNAMIC_LINEAR, weight=replace(WEIGHT, per_tensor=False, axis=1))
# Without a bias the lowering of a product cannot find scales per channel.
PRODUCT = replace(LINEAR, weight=replace(WEIGHT, per_channel=False))


def elementwise(*names: str) -> KernelLimits:
    """A kernel without weights, from int8 to int8.

    Args:
        names: what the runtime calls it.
    """
    return KernelLimits(
        names=names, activation=ACTIVATION, result=ACTIVATION, dimensions=DIMENSIONS
    )
