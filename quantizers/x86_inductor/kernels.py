"""What oneDNN's kernels take, as Inductor reaches them, and the loops that it writes itself."""

from __future__ import annotations

from dataclasses import replace

import torch

from pt2q.quantizers.toolkit.table.kernel_limits import (
    ANY_RANK,
    INT8,
    UINT8,
    KernelLimits,
    StoredAs,
    TensorLimits,
)
from pt2q.spec import PerAxis, PerTensor

MIN_SCALE = 2.0**-60
"""The smallest scale: smaller ones have products that are no normal float32 numbers."""

ACTIVATION = TensorLimits(stored=(UINT8,), min_scale=MIN_SCALE)
ACTIVATION_AT_RUN_TIME = TensorLimits(stored=(UINT8,), min_scale=MIN_SCALE)
WEIGHT = TensorLimits(stored=(INT8.scaled(PerAxis),), min_scale=MIN_SCALE)

CONVOLUTION = KernelLimits(
    names=("onednn.qconv",), activation=ACTIVATION, weight=WEIGHT, result=ACTIVATION
)
# A single row has no batch dimension, and finds no kernel.
LINEAR = replace(CONVOLUTION, names=("onednn.qlinear",), dimensions=(2, ANY_RANK[1]))
DYNAMIC_LINEAR = replace(LINEAR, activation=ACTIVATION_AT_RUN_TIME, result=None)
# Weights kept in half precision; the product computes in float32.
HALF_LINEAR = KernelLimits(
    activation=TensorLimits(stored=()),
    weight=TensorLimits(stored=(StoredAs(torch.float16).scaled(PerTensor),)),
    float_activation=True,
)
RESIDUAL = KernelLimits(names=("onednn.qconv",), activation=ACTIVATION, result=ACTIVATION)
# Loops over integers, which Inductor writes.
LOOP = KernelLimits(names=("generated code",), activation=ACTIVATION, result=ACTIVATION)
FLOAT = KernelLimits(activation=ACTIVATION)
