"""What XNNPACK, as ExecuTorch delegates to it, runs in int8.

Two facts shape the table. A convolution or linear layer whose quantized pattern is not delegated
cannot be lowered at all, so their checks are strict. An operator without an int8 kernel gains
nothing from a quantize and a dequantize around it, so it stays in float.
"""

from __future__ import annotations

from dataclasses import replace

from torch.fx import Node

from pt2q.ir import ops
from pt2q.ir.ops import argument
from pt2q.quantizers.toolkit import reasons
from pt2q.quantizers.toolkit.config import Mode, QuantizationConfig
from pt2q.quantizers.toolkit.table import checks, common_rows, examples
from pt2q.quantizers.toolkit.table.annotate import (
    annotate_activations,
    annotate_like_input,
    annotate_weighted,
)
from pt2q.quantizers.toolkit.table.backend_table import BackendTable
from pt2q.quantizers.toolkit.table.products import of_product
from pt2q.quantizers.toolkit.table.rule import Rule, When, in_training
from pt2q.quantizers.xnnpack import checks as own
from pt2q.quantizers.xnnpack import kernels
from pt2q.quantizers.xnnpack.configs import get_symmetric_quantization_config

FUSED = ops.RELU | ops.RELU6 | ops.HARDTANH


def _is_grouped(node: Node) -> bool:
    return bool(argument(node, "groups") > 1)


# ------------------------------------------------------------------ products

CONVOLUTION = replace(
    common_rows.CONVOLUTION,
    tails=(FUSED,),
    kernel=kernels.CONVOLUTION,
    modes=frozenset({Mode.STATIC}),
)
GROUPED_TRANSPOSED = replace(
    CONVOLUTION,
    name="grouped transposed convolution",
    heads=ops.CONV_TRANSPOSE1D | ops.CONV_TRANSPOSE2D,
    where=_is_grouped,
    kernel=kernels.GROUPED_TRANSPOSED,
    examples=(examples.GROUPED_TRANSPOSED,),
)
TRANSPOSED = replace(
    GROUPED_TRANSPOSED,
    name="transposed convolution",
    where=None,
    kernel=kernels.TRANSPOSED,
    examples=(examples.TRANSPOSED,),
)
LINEAR = replace(
    common_rows.LINEAR,
    tails=(FUSED,),
    kernel=kernels.LINEAR,
    modes=frozenset({Mode.STATIC}),
)
DYNAMIC_LINEAR = replace(
    common_rows.LINEAR,
    name="dynamic linear",
    kernel=kernels.DYNAMIC_LINEAR,
    modes=frozenset({Mode.DYNAMIC}),
)
DYNAMIC_CONVOLUTION = replace(
    common_rows.CONVOLUTION,
    name="dynamic convolution",
    heads=ops.CONV2D,
    kernel=kernels.DYNAMIC_CONVOLUTION,
    checks=(*common_rows.CONVOLUTION.checks, own.several_channels),
    modes=frozenset({Mode.DYNAMIC}),
    examples=(examples.ONE_IMAGE,),
)
DYNAMIC_TRANSPOSED = replace(
    DYNAMIC_CONVOLUTION,
    name="dynamic transposed convolution",
    heads=ops.CONV_TRANSPOSE2D,
    kernel=kernels.DYNAMIC_TRANSPOSED,
    checks=(*common_rows.CONVOLUTION.checks, own.one_group, own.several_channels),
    examples=(examples.ONE_TRANSPOSED_IMAGE,),
)
# An activation fused with a bare matrix product makes the runtime reject the model.
ADDMM = Rule(
    name="addmm",
    heads=ops.ADDMM,
    kernel=kernels.ADDMM,
    annotate=annotate_weighted,
    checks=(own.unscaled, *checks.CONSTANT_WEIGHT),
    examples=(examples.ADDMM,),
)
DYNAMIC_ADDMM = replace(
    ADDMM,
    name="dynamic addmm",
    kernel=kernels.DYNAMIC_ADDMM,
    modes=frozenset({Mode.DYNAMIC}),
)
PRODUCT = Rule(
    name="matrix product",
    heads=ops.MM | ops.MATMUL,
    kernel=kernels.PRODUCT,
    annotate=annotate_weighted,
    checks=(checks.no_picked_matrices, own.matrix_operand, *checks.CONSTANT_WEIGHT),
    examples=(examples.CONSTANT_MATRIX,),
)

# ------------------------------------------------------------------ between quantized operators

ADDITION = Rule(
    name="addition",
    heads=ops.ADD,
    tails=(ops.RELU,),
    kernel=kernels.elementwise("XNNAdd"),
    annotate=annotate_activations,
    checks=checks.TWO_TENSORS,
    when=When.BETWEEN_QUANTIZED,
    examples=(examples.ADDITION,),
)
SUBTRACTION = replace(
    ADDITION,
    name="subtraction",
    heads=ops.SUB,
    tails=(),
    kernel=kernels.elementwise("XNNSubtract"),
    examples=(examples.SUBTRACTION,),
)
MULTIPLICATION = replace(
    SUBTRACTION,
    name="multiplication",
    heads=ops.MUL,
    kernel=kernels.elementwise("XNNMultiply"),
    examples=(examples.MULTIPLICATION,),
)
CONCATENATION = replace(
    common_rows.CONCATENATION, kernel=kernels.elementwise("XNNConcatenate2", "XNNConcatenate3")
)
MEAN = Rule(
    name="mean",
    heads=ops.MEAN,
    kernel=kernels.elementwise("XNNGlobalAvgPooling2d"),
    annotate=annotate_activations,
    checks=(checks.one_float_type, own.mean_over_image),
    when=When.BETWEEN_QUANTIZED,
    examples=(examples.MEAN,),
)
POOL = replace(
    MEAN,
    name="global average pool",
    heads=ops.ADAPTIVE_AVG_POOL2D,
    checks=(checks.one_float_type, own.pools_to_one),
    examples=(examples.GLOBAL_POOL,),
)

# ------------------------------------------------------------------ in the parameters of the input

RESHAPE = Rule(
    name="reshape",
    heads=ops.RESHAPE,
    kernel=kernels.elementwise("XNNStaticReshape"),
    annotate=annotate_like_input,
    checks=(checks.float_inputs, checks.writes_nothing_shared),
    when=When.INPUT_QUANTIZED,
    examples=(examples.RESHAPE,),
)
PERMUTE = replace(
    RESHAPE,
    name="permute",
    heads=ops.PERMUTE,
    kernel=kernels.elementwise("XNNStaticTranspose"),
    examples=(examples.PERMUTE,),
)
MAX_POOL = replace(
    RESHAPE,
    name="max pool",
    heads=ops.MAX_POOL2D,
    kernel=kernels.elementwise("XNNMaxPooling2d"),
    checks=(*RESHAPE.checks, own.pool_window),
    examples=(examples.MAX_POOL,),
)
PADDING = replace(
    RESHAPE,
    name="padding",
    heads=ops.PAD,
    kernel=kernels.elementwise("XNNStaticConstantPad"),
    checks=(*RESHAPE.checks, own.adds_zeros),
    examples=(examples.PADDING,),
)
BOUND = replace(
    RESHAPE,
    name="bound",
    heads=FUSED | ops.CLAMP,
    kernel=kernels.elementwise("XNNClamp"),
    checks=(*RESHAPE.checks, own.literal_bounds),
    examples=(examples.BOUND,),
)
# The runtime runs these in float; int8 before and after them loses nothing.
PART = replace(
    RESHAPE,
    name="part",
    heads=ops.SUBSET,
    kernel=kernels.elementwise(),
    output_counts=False,
    examples=(examples.PART,),
)
SPLIT = replace(
    PART,
    name="split",
    heads=ops.SPLIT | frozenset({ops.GETITEM}),
    examples=(examples.SPLIT,),
)
REPEAT = replace(
    PART,
    name="repeat",
    heads=ops.REPEAT | ops.UPSAMPLE_NEAREST,
    examples=(examples.REPEAT, examples.UPSAMPLE),
)
COPY = replace(PART, name="copy", heads=ops.COPY, examples=(examples.COPY,))
DROPOUT = replace(
    PART,
    name="dropout",
    heads=ops.DROPOUT,
    checks=(*RESHAPE.checks, checks.inactive),
    examples=(examples.DROPOUT,),
)


def _configure(mode: Mode) -> QuantizationConfig:
    return get_symmetric_quantization_config(
        is_per_channel=True, is_qat=mode is Mode.QAT, is_dynamic=mode is Mode.DYNAMIC
    )


IN_THREE_DIMENSIONS = (
    ops.CONV3D | ops.CONV_TRANSPOSE3D,
    reasons.NO_CONVOLUTION_KERNEL.filled(kind="3d"),
)
XNNPACK = BackendTable(
    runtime="XNNPACK",
    configure=_configure,
    configuration="get_symmetric_quantization_config(is_per_channel=True)",
    rules=(
        CONVOLUTION,
        in_training(CONVOLUTION, examples.CONVOLUTION_IN_TRAINING),
        GROUPED_TRANSPOSED,
        in_training(GROUPED_TRANSPOSED, examples.GROUPED_TRANSPOSED_IN_TRAINING),
        TRANSPOSED,
        in_training(TRANSPOSED, examples.TRANSPOSED_IN_TRAINING),
        LINEAR,
        in_training(LINEAR, examples.LINEAR_IN_TRAINING),
        DYNAMIC_LINEAR,
        DYNAMIC_CONVOLUTION,
        DYNAMIC_TRANSPOSED,
        ADDMM,
        DYNAMIC_ADDMM,
        PRODUCT,
        ADDITION,
        SUBTRACTION,
        MULTIPLICATION,
        CONCATENATION,
        MEAN,
        POOL,
        MAX_POOL,
        BOUND,
        RESHAPE,
        PERMUTE,
        PART,
        SPLIT,
        REPEAT,
        COPY,
        DROPOUT,
        PADDING,
    ),
    in_float_dynamic=(
        (ops.CONV1D | ops.CONV_TRANSPOSE1D, reasons.DYNAMIC_IMAGES_ONLY),
        IN_THREE_DIMENSIONS,
    ),
    else_in_float_dynamic=reasons.DYNAMIC_PRODUCTS_ONLY,
    in_float=(
        (
            ops.BMM | ops.PRODUCT_ADDED,
            of_product(reasons.CONSTANT_FACTOR, reasons.PRODUCT_IN_FLOAT),
        ),
        (ops.MATMUL | ops.SDPA, reasons.PRODUCT_IN_FLOAT),
        IN_THREE_DIMENSIONS,
        (ops.BATCH_NORM, reasons.BATCH_NORM_ALONE),
    ),
)
