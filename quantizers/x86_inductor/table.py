"""What Inductor runs in int8 on x86, with oneDNN's kernels.

Inductor reads quantization from the inputs of operators: a convolution writes uint8 when whoever
reads its result quantizes it. So inputs are annotated, results never, and a tensor that is read in
float alone stays in float.
"""

from __future__ import annotations

from dataclasses import replace

from pt2q.ir import ops
from pt2q.quantizers.toolkit import reasons
from pt2q.quantizers.toolkit.config import Mode, QuantizationConfig
from pt2q.quantizers.toolkit.reasons import Reason
from pt2q.quantizers.toolkit.table import checks, common_rows, examples
from pt2q.quantizers.toolkit.table.annotate import annotate_inputs, annotate_weighted_inputs
from pt2q.quantizers.toolkit.table.backend_table import BackendTable
from pt2q.quantizers.toolkit.table.products import of_product
from pt2q.quantizers.toolkit.table.rule import Match, Rule, When, in_training
from pt2q.quantizers.x86_inductor import kernels
from pt2q.quantizers.x86_inductor.configs import get_default_x86_inductor_quantization_config
from pt2q.quantizers.x86_inductor.fusion import (
    CONVOLUTION_FUSED,
    LINEAR_FUSED,
    adds_to_convolution,
    annotate_residual,
    same_shape,
    why_not_fused,
)

_why_product_in_float = of_product(reasons.NEEDS_LINEAR_LAYER, reasons.PRODUCT_IN_FLOAT)


def _asked_for(match: Match) -> Reason | None:
    """A product of activations computes in float: rounding its factors has to be asked for."""
    return None if match.choice.by_operator else _why_product_in_float(match.head)


CONVOLUTION = replace(
    common_rows.CONVOLUTION,
    tails=(CONVOLUTION_FUSED,),
    kernel=kernels.CONVOLUTION,
    annotate=annotate_weighted_inputs,
    modes=frozenset({Mode.STATIC}),
)
LINEAR = replace(
    common_rows.LINEAR,
    tails=(LINEAR_FUSED,),
    kernel=kernels.LINEAR,
    annotate=annotate_weighted_inputs,
)
DYNAMIC_LINEAR = replace(
    LINEAR,
    name="dynamic linear",
    kernel=kernels.DYNAMIC_LINEAR,
    modes=frozenset({Mode.DYNAMIC}),
)
# Beside the table: its configuration is another than the table's.
HALF_LINEAR = replace(
    LINEAR,
    name="linear in half precision",
    tails=(),
    kernel=kernels.HALF_LINEAR,
    modes=frozenset({Mode.STATIC}),
)
PRODUCT = replace(
    common_rows.PRODUCT,
    kernel=kernels.FLOAT,
    checks=(*common_rows.PRODUCT.checks, _asked_for),
    examples=(examples.COMPUTED_FACTORS_ASKED_FOR,),
)
RESIDUAL = Rule(
    name="residual addition",
    heads=ops.ADD,
    tails=(ops.RELU,),
    kernel=kernels.RESIDUAL,
    annotate=annotate_residual,
    checks=(*checks.TWO_TENSORS, same_shape, adds_to_convolution),
    when=When.BETWEEN_QUANTIZED,
    output_counts=False,
    examples=(examples.RESIDUAL, examples.ADDITION),
)
# Its loop reads each input by a scale of its own: one that is small beside the others, and is read
# elsewhere too, keeps its integers.
CONCATENATION = replace(
    common_rows.CONCATENATION, kernel=kernels.LOOP, annotate=annotate_inputs, output_counts=False
)
AVERAGE = replace(common_rows.AVERAGE, kernel=kernels.LOOP, output_counts=False)
MOVE = replace(common_rows.MOVE, kernel=kernels.LOOP)
DROPOUT = replace(common_rows.DROPOUT, kernel=kernels.LOOP)


def _configure(mode: Mode) -> QuantizationConfig:
    return get_default_x86_inductor_quantization_config(
        is_qat=mode is Mode.QAT, is_dynamic=mode is Mode.DYNAMIC
    )


X86_INDUCTOR = BackendTable(
    runtime="Inductor",
    configure=_configure,
    configuration="get_default_x86_inductor_quantization_config()",
    rules=(
        CONVOLUTION,
        in_training(CONVOLUTION, examples.CONVOLUTION_IN_TRAINING),
        LINEAR,
        DYNAMIC_LINEAR,
        PRODUCT,
        RESIDUAL,
        CONCATENATION,
        AVERAGE,
        MOVE,
        DROPOUT,
    ),
    multiplies_groups=True,
    in_float=(
        (ops.SDPA, reasons.PRODUCT_IN_FLOAT),
        (ops.BMM | ops.MATMUL | ops.PRODUCT_ADDED | ops.MM, _why_product_in_float),
        (
            ops.CONV3D | ops.CONV_TRANSPOSE,
            reasons.NO_CONVOLUTION_KERNEL.filled(kind="3d or transposed"),
        ),
        (ops.BATCH_NORM, reasons.BATCH_NORM_ALONE),
        (CONVOLUTION_FUSED | LINEAR_FUSED, why_not_fused),
    ),
)
