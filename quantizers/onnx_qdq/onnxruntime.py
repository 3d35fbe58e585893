"""ONNX Runtime and OpenVINO: an operator in integers, from uint8 to uint8, for each row."""

from __future__ import annotations

from dataclasses import replace

from pt2q.ir import ops
from pt2q.quantizers.onnx_qdq import shared_rows as shared
from pt2q.quantizers.onnx_qdq.configs import get_onnxruntime_quantization_config
from pt2q.quantizers.onnx_qdq.kernels import ACTIVATION, unweighted, weighted
from pt2q.quantizers.toolkit.config import Mode
from pt2q.quantizers.toolkit.table import checks, common_rows
from pt2q.quantizers.toolkit.table.annotate import annotate_activations
from pt2q.quantizers.toolkit.table.rule import Rule, When, in_training

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
)
# Its operator also gives float: a transformer's residual stream needs more than 8 bits.
LINEAR = replace(shared.LINEAR, kernel=weighted(ACTIVATION, "QGemm", "MatMulIntegerToFloat"))
DYNAMIC_LINEAR = replace(
    common_rows.LINEAR,
    name="dynamic linear",
    kernel=weighted(ACTIVATION, "DynamicQuantizeMatMul"),
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
)
MULTIPLICATION = replace(
    ADDITION,
    name="multiplication",
    heads=ops.MUL,
    tails=(),
    kernel=unweighted(ACTIVATION, "QLinearMul"),
)
CONCATENATION = replace(common_rows.CONCATENATION, kernel=unweighted(ACTIVATION, "QLinearConcat"))
AVERAGE = replace(
    common_rows.AVERAGE,
    kernel=unweighted(ACTIVATION, "QLinearAveragePool", "QLinearGlobalAveragePool"),
    annotate=annotate_activations,
)
MOVE = replace(
    common_rows.MOVE,
    heads=common_rows.MOVE.heads | ops.SUBSET,
    kernel=unweighted(ACTIVATION),
)
DROPOUT = replace(common_rows.DROPOUT, kernel=unweighted(ACTIVATION))

ONNXRUNTIME = shared.OnnxTable(
    runtime="ONNX Runtime",
    default=get_onnxruntime_quantization_config,
    configuration="get_onnxruntime_quantization_config()",
    rules=(
        CONVOLUTION,
        in_training(CONVOLUTION),
        TRANSPOSED,
        in_training(TRANSPOSED),
        LINEAR,
        DYNAMIC_LINEAR,
        PRODUCT,
        ADDITION,
        MULTIPLICATION,
        CONCATENATION,
        AVERAGE,
        MOVE,
        DROPOUT,
    ),
    in_float=shared.IN_FLOAT,
    leaves_out_relu=True,
)
OPENVINO = replace(ONNXRUNTIME, runtime="OpenVINO")
