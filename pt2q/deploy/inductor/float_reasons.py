"""Why Inductor computes a quantized operator in float."""

from __future__ import annotations

import torch
from torch.fx import Node

from pt2q.deploy.inductor.bfloat16 import dequantize_behind
from pt2q.ir import ops
from pt2q.ir.graph import is_constant
from pt2q.ir.qparams import read_qparams
from pt2q.quantizers.toolkit.reasons import Reason

_STATIC = frozenset({ops.qd.dequantize_per_tensor.default})
_PER_TOKEN = frozenset({ops.qd.dequantize_per_token.default})
_PER_GROUP = frozenset({ops.qd.dequantize_per_channel_group.default})

_SMALL = 16
"""Inductor writes a product of one row with a matrix of at most this size as a sum."""

TRANSPOSED = Reason("inductor-transposed", "Inductor has no int8 transposed convolution")
THREE_DIMENSIONS = Reason("inductor-3d", "Inductor has no int8 3d convolution")
TWO_ACTIVATIONS = Reason(
    "inductor-two-activations",
    "both factors are computed: Inductor multiplies two activations in float",
)
GROUPS = Reason("inductor-groups", "Inductor has no int8 kernel for weights in groups")
WEIGHT_TYPE = Reason(
    "inductor-weight-type", "its weight is {dtype}", "quantize weights in int8, per channel"
)
NO_BATCH = Reason(
    "inductor-no-batch",
    "its input has no batch dimension",
    "export the model with a batch of inputs",
)
SMALL_PRODUCT = Reason(
    "inductor-small-product",
    "one row times so small a weight: Inductor writes it as a sum, without a kernel",
)
FLOAT_INPUT = Reason(
    "inductor-float-input",
    "its input is in float: only its weight is quantized",
    "give the operator a configuration that quantizes its input",
)
PER_TOKEN = Reason(
    "inductor-per-token",
    "its input is quantized per token; Inductor's kernels take one scale per tensor",
    "use X86InductorQuantizer, whose dynamic configuration has one scale",
)
DYNAMIC_CONVOLUTION = Reason(
    "inductor-dynamic-convolution",
    "Inductor quantizes no convolution dynamically",
    "quantize convolutions statically",
)
NO_PATTERN = Reason(
    "inductor-no-pattern",
    "none of Inductor's patterns matched; X86InductorQuantizer quantizes as they want it, for "
    "the shapes that the model was exported with",
)

ONE_DIMENSION = Reason(
    "inductor-1d",
    "a convolution of one dimension whose result is not quantized: Inductor takes its size wrongly",
    "write it as a two-dimensional convolution, x.unsqueeze(2)",
)

_BY_OPERATOR = ((ops.CONV_TRANSPOSE, TRANSPOSED), (ops.CONV3D, THREE_DIMENSIONS))


def why_float(node: Node, weight: Node | None) -> Reason:
    """Why a convolution or matrix product that is quantized computes in float.

    Args:
        node: the operator, in the converted graph.
        weight: what `weight_dequantize` says of it.
    """
    for targets, reason in _BY_OPERATOR:
        if ops.is_op(node, targets):
            return reason
    if weight is None and ops.is_op(node, ops.CONV1D):
        return ONE_DIMENSION
    if weight is None:
        return TWO_ACTIVATIONS
    if ops.is_op(weight, _PER_GROUP):
        return GROUPS
    dtype = read_qparams(weight).dtype
    if dtype is not torch.int8:
        return WEIGHT_TYPE.filled(dtype=str(dtype).removeprefix("torch."))
    return _why_shape(node) or _why_input(_input_dequantize(node), ops.is_op(node, ops.CONV))


def _why_shape(node: Node) -> Reason | None:
    value, result = node.all_input_nodes[0].meta.get("val"), node.meta.get("val")
    if not ops.is_op(node, ops.LINEAR) or value is None or result is None:
        return None
    if value.dim() < 2:
        return NO_BATCH
    sizes = (value.shape[-1], result.shape[-1])
    one_row = all(size == 1 for size in value.shape[:-1])
    if one_row and all(isinstance(size, int) and size <= _SMALL for size in sizes):
        return SMALL_PRODUCT
    return None


def _input_dequantize(node: Node) -> Node | None:
    name = next(n for n in ("input", "mat1", "self") if ops.has_argument(node, n))
    return dequantize_behind(ops.argument(node, name))


def _why_input(dequantize: Node | None, is_conv: bool) -> Reason:
    if dequantize is None:
        return FLOAT_INPUT
    if ops.is_op(dequantize, _PER_TOKEN):
        return PER_TOKEN
    if is_conv and not ops.is_op(dequantize, _STATIC):
        return DYNAMIC_CONVOLUTION
    return NO_PATTERN


def weight_dequantize(node: Node) -> Node | None:
    """The dequantize of an operator's constant weight, or None if it has none.

    Args:
        node: a convolution or a matrix product.
    """
    name = next((n for n in ("weight", "mat2", "other") if ops.has_argument(node, n)), None)
    found = dequantize_behind(ops.argument(node, name)) if name is not None else None
    if found is None:
        return None
    source = ops.data_input(found)
    if ops.is_op(source, ops.QUANTIZE):  # converted with fold_quantize=False
        source = ops.data_input(source)
    return found if is_constant(source) else None
