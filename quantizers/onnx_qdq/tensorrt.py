"""TensorRT: the inputs of what computes, and the skip branch of residual additions."""

from __future__ import annotations

from dataclasses import replace

from pt2q.ir import ops
from pt2q.quantizers.onnx_qdq import shared_rows as shared
from pt2q.quantizers.onnx_qdq.configs import get_tensorrt_quantization_config
from pt2q.quantizers.onnx_qdq.kernels import SYMMETRIC, unweighted, weighted
from pt2q.quantizers.toolkit.config import Mode
from pt2q.quantizers.toolkit.reading.residual_additions import (
    Residual,
    residual_of,
    why_no_residual,
)
from pt2q.quantizers.toolkit.reasons import Reason
from pt2q.quantizers.toolkit.table import checks, common_rows, examples
from pt2q.quantizers.toolkit.table.annotate import annotate_chain, annotate_weighted_inputs
from pt2q.quantizers.toolkit.table.rule import Match, Rule, When

_PRODUCTS = shared.CONVOLUTION.heads | ops.CONV_TRANSPOSE | ops.LINEAR


def _residual(match: Match) -> Residual | None:
    return residual_of(match.head, _PRODUCTS, prefer_last=False, own_input=True)


def _adds_to_product(match: Match) -> Reason | None:
    if _residual(match) is None:
        return why_no_residual(match.head, _PRODUCTS, "a convolution or linear layer")
    return None


def _annotate_skip_branch(match: Match) -> None:
    found = _residual(match)
    assert found is not None
    annotate_chain(match, {found.other: match.config.input_activation}, None)


CONVOLUTION = replace(
    shared.CONVOLUTION,
    kernel=weighted(SYMMETRIC, "Conv"),
    annotate=annotate_weighted_inputs,
    modes=frozenset({Mode.STATIC}),
)
TRANSPOSED = replace(
    CONVOLUTION,
    name="transposed convolution",
    heads=ops.CONV_TRANSPOSE,
    kernel=weighted(SYMMETRIC, "ConvTranspose", axis=1),
    examples=(examples.TRANSPOSED, examples.GROUPED_TRANSPOSED),
)
LINEAR = replace(shared.LINEAR, kernel=weighted(SYMMETRIC, "Gemm", "MatMul"))
PRODUCT = replace(shared.PRODUCT, kernel=unweighted(SYMMETRIC, "MatMul"))
RESIDUAL = Rule(
    name="residual addition",
    heads=ops.ADD,
    tails=(ops.RELU,),
    kernel=unweighted(SYMMETRIC, "Add"),
    annotate=_annotate_skip_branch,
    checks=(*checks.TWO_TENSORS, _adds_to_product),
    when=When.BETWEEN_QUANTIZED,
    examples=(examples.RESIDUAL, examples.ADDITION),
)
AVERAGE = replace(
    common_rows.AVERAGE,
    kernel=unweighted(SYMMETRIC, "AveragePool", "ReduceMean", "GlobalAveragePool"),
)
# These commute with a quantize; the runtime moves it by itself.
MOVE = replace(
    common_rows.MOVE,
    heads=common_rows.MOVE.heads | ops.CAT,
    kernel=unweighted(SYMMETRIC),
    examples=(*common_rows.MOVE.examples, examples.CONCATENATION),
)

TENSORRT = shared.OnnxTable(
    runtime="TensorRT",
    configure=lambda mode: get_tensorrt_quantization_config(is_qat=mode is Mode.QAT),
    configuration="get_tensorrt_quantization_config()",
    rules=(
        *shared.with_training(CONVOLUTION, TRANSPOSED),
        LINEAR,
        PRODUCT,
        RESIDUAL,
        AVERAGE,
        MOVE,
    ),
    in_float=shared.IN_FLOAT,
    leaves_out_relu=False,
)
