"""ONNX Runtime: an operator in integers, from uint8 to uint8, for each row."""

from __future__ import annotations

from dataclasses import replace

from pt2q.ir import ops
from pt2q.quantizers.onnx_qdq import shared_rows as shared
from pt2q.quantizers.onnx_qdq.configs import get_onnxruntime_quantization_config
from pt2q.quantizers.onnx_qdq.kernels import ACTIVATION, AT_RUN_TIME, unweighted, weighted
from pt2q.quantizers.toolkit import reasons
from pt2q.quantizers.toolkit.config import Mode, QuantizationConfig
from pt2q.quantizers.toolkit.table import checks, common_rows, examples
from pt2q.quantizers.toolkit.table.annotate import annotate_activations
from pt2q.quantizers.toolkit.table.products import of_product
from pt2q.quantizers.toolkit.table.rule import Rule, When

CONVOLUTION = replace(
    shared.CONVOLUTION,
    kernel=weighted(ACTIVATION, "QLinearConv"),
    modes=frozenset({Mode.STATIC}),
)
# With groups the axis of the channels repeats over the groups, each with channels of its own; ONNX
# can only give all groups the same scales, so each is as wide as the widest.
TRANSPOSED = replace(
    CONVOLUTION,
    name="transposed convolution",
    heads=ops.CONV_TRANSPOSE,
    kernel=weighted(ACTIVATION, axis=1),
    examples=(examples.TRANSPOSED, examples.GROUPED_TRANSPOSED),
)
# Its operator also gives float: a transformer's residual stream needs more than 8 bits.
LINEAR = replace(shared.LINEAR, kernel=weighted(ACTIVATION, "QGemm", "MatMulIntegerToFloat"))
DYNAMIC_LINEAR = replace(
    common_rows.LINEAR,
    name="dynamic linear",
    kernel=replace(weighted(AT_RUN_TIME, "DynamicQuantizeMatMul"), result=None),
    modes=frozenset({Mode.DYNAMIC}),
)
PRODUCT = replace(shared.PRODUCT, kernel=unweighted(ACTIVATION, "QLinearMatMul"))
ADDITION = Rule(
    name="addition",
    heads=ops.ADD,
    tails=(ops.RELU,),
    kernel=unweighted(ACTIVATION, "QLinearAdd"),
    annotate=annotate_activations,
    checks=checks.TWO_TENSORS,
    when=When.BETWEEN_QUANTIZED,
    examples=(examples.ADDITION, examples.RESIDUAL),
)
MULTIPLICATION = replace(
    ADDITION,
    name="multiplication",
    heads=ops.MUL,
    tails=(),
    kernel=unweighted(ACTIVATION, "QLinearMul"),
    examples=(examples.MULTIPLICATION,),
)
CONCATENATION = replace(common_rows.CONCATENATION, kernel=unweighted(ACTIVATION, "QLinearConcat"))
AVERAGE = replace(
    common_rows.AVERAGE,
    heads=ops.AVG_POOL,
    kernel=unweighted(ACTIVATION, "QLinearAveragePool"),
    annotate=annotate_activations,
    examples=(examples.AVERAGE_POOL,),
)
# The runtime averages in float; int8 before and after it loses little.
MEAN = replace(
    AVERAGE,
    name="mean",
    heads=ops.MEAN | ops.ADAPTIVE_AVG_POOL,
    kernel=unweighted(ACTIVATION),
    examples=(examples.MEAN, examples.GLOBAL_POOL),
)
MOVE = replace(
    common_rows.MOVE,
    heads=common_rows.MOVE.heads | ops.SUBSET,
    kernel=unweighted(ACTIVATION),
    examples=(*common_rows.MOVE.examples, examples.PART),
)
DROPOUT = replace(common_rows.DROPOUT, kernel=unweighted(ACTIVATION))


def _configure(mode: Mode) -> QuantizationConfig:
    return get_onnxruntime_quantization_config(
        is_qat=mode is Mode.QAT, is_dynamic=mode is Mode.DYNAMIC
    )


ONNXRUNTIME = shared.OnnxTable(
    runtime="ONNX Runtime",
    configure=_configure,
    configuration="get_onnxruntime_quantization_config()",
    rules=(
        *shared.with_training(CONVOLUTION, TRANSPOSED),
        LINEAR,
        DYNAMIC_LINEAR,
        PRODUCT,
        ADDITION,
        MULTIPLICATION,
        CONCATENATION,
        AVERAGE,
        MEAN,
        MOVE,
        DROPOUT,
    ),
    in_float=(
        (
            ops.PRODUCT_ADDED,
            of_product(
                reasons.CONSTANT_FACTOR, reasons.PRODUCT_WITH_ADDITION, reasons.SCALED_PRODUCT
            ),
        ),
        *shared.IN_FLOAT,
    ),
    leaves_out_relu=True,
)
