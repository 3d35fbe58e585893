"""The one place that names operators.

Operators are compared as overloads through the frozen sets below; `overloads` turns what a
user gives (a packet, an overload, a Python function) into such a set. Arguments are read and
written by schema name, so that no pass depends on their position.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

# Registers the quantized_decomposed operators; a program that loads a saved model needs it too.
from torch.ao.quantization.fx import _decomposed as _decomposed
from torch.fx import Node

aten = torch.ops.aten
qd = torch.ops.quantized_decomposed

Target = Callable[..., Any]


@lru_cache(maxsize=4096)
def overloads(op: Any) -> frozenset[Target]:
    """All operators meant by ``op``.

    Args:
        op: an overload (itself only), a packet (every overload of it) or any other callable
            (itself only).

    Returns:
        The set to compare node targets with.
    """
    if isinstance(op, torch._ops.OpOverloadPacket):
        return frozenset(getattr(op, name) for name in op.overloads())
    return frozenset({op})


def _all(*ops: Any) -> frozenset[Target]:
    return frozenset().union(*(overloads(op) for op in ops))


CONV1D = _all(aten.conv1d)
CONV2D = _all(aten.conv2d)
CONV3D = _all(aten.conv3d)
CONV_TRANSPOSE1D = _all(aten.conv_transpose1d)
CONV_TRANSPOSE2D = _all(aten.conv_transpose2d)
CONV_TRANSPOSE3D = _all(aten.conv_transpose3d)
CONV_FORWARD = CONV1D | CONV2D | CONV3D
CONV_TRANSPOSE = CONV_TRANSPOSE1D | CONV_TRANSPOSE2D | CONV_TRANSPOSE3D
CONV_GENERIC = _all(aten.convolution)
CONV = CONV_FORWARD | CONV_TRANSPOSE
LINEAR = _all(aten.linear)
ADDMM = _all(aten.addmm)
MM = _all(aten.mm)
BMM = _all(aten.bmm)
MATMUL = _all(aten.matmul)
EMBEDDING = _all(aten.embedding)
SDPA = _all(aten.scaled_dot_product_attention)
LSTM = _all(aten.lstm.input)
GRU = _all(aten.gru.input)
RNN_TANH = _all(aten.rnn_tanh.input)
RNN_RELU = _all(aten.rnn_relu.input)
RECURRENT = LSTM | GRU | RNN_TANH | RNN_RELU

BATCH_NORM = _all(aten.batch_norm)
# With those that decomposed programs hold: they give batch statistics, too.
BATCH_NORM_ANY = BATCH_NORM | {
    aten._native_batch_norm_legit_no_training.default,
    aten._native_batch_norm_legit_functional.default,
    aten._native_batch_norm_legit.default,
    aten.native_batch_norm.default,
}

RELU = _all(aten.relu, aten.relu_)
RELU6 = _all(aten.relu6, aten.relu6_)
HARDTANH = _all(aten.hardtanh, aten.hardtanh_)
CLAMP = _all(aten.clamp, aten.clamp_, aten.clamp_min, aten.clamp_min_)
ADD = _all(aten.add, aten.add_)
SUB = _all(aten.sub, aten.sub_)
MUL = _all(aten.mul, aten.mul_)
CAT = _all(aten.cat, aten.concat)

DROPOUT = _all(
    aten.dropout,
    aten.dropout_,
    aten.native_dropout,
    aten.feature_dropout,
    aten.feature_dropout_,
    aten.alpha_dropout,
    aten.alpha_dropout_,
    aten.feature_alpha_dropout,
    aten.feature_alpha_dropout_,
)

# Operators that may give their first input, or a view of it, though their schema promises a new
# tensor.
MAY_RETURN_INPUT = DROPOUT | _all(
    aten.type_as,
    aten.einsum,
    aten.meshgrid,
    aten.broadcast_tensors,
    aten.atleast_1d,
    aten.atleast_2d,
    aten.atleast_3d,
)

# In place by their schema, but no element changes.
WRITES_NOTHING = _all(aten.detach_)
# What writes the elements of one tensor into another and computes nothing.
STORES = _all(aten.copy_, aten.index_put_, aten.index_copy_, aten.scatter_.src)

# What makes a tensor of numbers and sizes alone.
FILLED = _all(
    aten.ones, aten.zeros, aten.full, aten.arange, aten.eye, aten.linspace, aten.scalar_tensor
)
ASSERT_METADATA = _all(aten._assert_tensor_metadata)

COUNT_ONE = aten.add_.Tensor
COUNT = frozenset({COUNT_ONE})
ITEM = aten.item.default
hardtanh_backward = aten.hardtanh_backward.default
native_batch_norm_backward = aten.native_batch_norm_backward.default

# Its function is in `pt2q.training.scaled_batch_norm`.
library = torch.library.Library("pt2q", "FRAGMENT")
library.define(
    "scaled_batch_norm(Tensor input, Tensor factor, Tensor? own_bias, Tensor? weight, "
    "Tensor? bias, Tensor running_mean, Tensor running_var, bool training, float momentum, "
    "float eps) -> Tensor"
)
SCALED_BATCH_NORM = torch.ops.pt2q.scaled_batch_norm.default

# A copy of a buffer that the same step updates later. An operator of its own, because a compiler
# would compute a clone anew in the backward pass, when the buffer has changed.
library.define("snapshot(Tensor input) -> Tensor")
library.impl("snapshot", torch.clone, "CPU")
library.impl("snapshot", torch.clone, "CUDA")
library.impl("snapshot", torch.empty_like, "Meta")
SNAPSHOT = torch.ops.pt2q.snapshot.default
BATCH_NORM_IN_TRAINING = BATCH_NORM | {SCALED_BATCH_NORM}

GETITEM = operator.getitem

MEAN = _all(aten.mean)
HARDSWISH = _all(aten.hardswish, aten.hardswish_)
SILU = _all(aten.silu, aten.silu_)
GELU = _all(aten.gelu, aten.gelu_)
ADAPTIVE_AVG_POOL2D = _all(aten.adaptive_avg_pool2d)
MAX_POOL2D = _all(aten.max_pool2d)
SOFTMAX = _all(aten.softmax, aten._softmax, aten.log_softmax)

# Operators that move elements and compute nothing, told apart by what their output looks like.
RESHAPE = _all(
    aten.view,
    aten.reshape,
    aten._unsafe_view,
    aten.flatten,
    aten.unflatten,
    aten.squeeze,
    aten.unsqueeze,
)
PERMUTE = _all(
    aten.permute,
    aten.transpose,
    aten.t,
    aten.movedim,
    aten.swapaxes,
    aten.swapdims,
    aten.numpy_T,
    aten.mT,
    aten.pixel_shuffle,
    aten.pixel_unshuffle,
    aten.channel_shuffle,
)
SUBSET = _all(aten.slice, aten.select, aten.narrow)
SPLIT = _all(
    aten.split, aten.split_with_sizes, aten.chunk, aten.tensor_split, aten.unbind, aten.unsafe_split
)
REPEAT = _all(aten.expand, aten.expand_as, aten.repeat, aten.repeat_interleave)
COPY = _all(aten.clone, aten.contiguous, aten.alias, aten.detach)
UPSAMPLE_NEAREST = _all(aten.upsample_nearest1d, aten.upsample_nearest2d, aten.upsample_nearest3d)
SHAPE = RESHAPE | PERMUTE | SUBSET | SPLIT | REPEAT | COPY

# What attention masks are built of: elementwise selection, scaling and casts.
MASK_ARITHMETIC = (
    ADD
    | SUB
    | MUL
    | _all(
        aten.where,
        aten.masked_fill,
        aten.masked_fill_,
        aten.rsub,
        aten.div,
        aten.neg,
        aten.full,
        aten.full_like,
        aten.new_full,
        aten.scalar_tensor,
        aten.triu,
        aten.tril,
        aten.log,
        aten.maximum,
        aten.minimum,
        aten.lift_fresh_copy,
        aten.copy_,
        aten.to,
        aten._to_copy,
        aten.type_as,
    )
)

QUANTIZE = frozenset(
    {
        qd.quantize_per_tensor.default,
        qd.quantize_per_tensor.tensor,
        qd.quantize_per_tensor.tensor2,
        qd.quantize_per_channel.default,
        qd.quantize_per_token.default,
        qd.quantize_per_channel_group.default,
    }
)
DEQUANTIZE = frozenset(
    {
        qd.dequantize_per_tensor.default,
        qd.dequantize_per_tensor.tensor,
        qd.dequantize_per_tensor.tensor2,
        qd.dequantize_per_channel.default,
        qd.dequantize_per_token.default,
        qd.dequantize_per_channel_group.default,
    }
)
# What integer arithmetic has a form of its own for; see `pt2q.passes.reference`.
CLAMP_LIKE = (
    RELU
    | RELU6
    | HARDTANH
    | _all(
        aten.clamp.default,
        aten.clamp_.default,
        aten.clamp_min.default,
        aten.clamp_min_.default,
        aten.clamp_max.default,
        aten.clamp_max_.default,
    )
)
RSUB = _all(aten.rsub)
NEG = _all(aten.neg, aten.neg_)
DIV = _all(aten.div.Tensor, aten.div.Scalar, aten.div_.Tensor, aten.div_.Scalar)
ADAPTIVE_AVG_POOL = _all(
    aten.adaptive_avg_pool1d.default,
    aten.adaptive_avg_pool2d.default,
    aten._adaptive_avg_pool2d.default,
    aten.adaptive_avg_pool3d.default,
)
AVG_POOL1D = _all(aten.avg_pool1d.default)
AVG_POOL2D = _all(aten.avg_pool2d.default)
AVG_POOL3D = _all(aten.avg_pool3d.default)
AVG_POOL = AVG_POOL1D | AVG_POOL2D | AVG_POOL3D
MAX_POOL1D = _all(aten.max_pool1d.default)
MAX_POOL = MAX_POOL1D | _all(aten.max_pool2d.default, aten.max_pool3d.default)
EXTREME = _all(aten.amax.default, aten.amin.default)
PAD = _all(aten.pad.default, aten.constant_pad_nd.default)
STACK = _all(aten.stack.default)
# All that picks and places elements of its first operand, whatever they are.
MOVES = SHAPE | _all(
    aten.flip, aten.roll.default, aten.index_select.default, aten.gather.default, aten.index.Tensor
)
# Quantizing before these is quantizing after them.
MONOTONE = MOVES | STACK | CAT | MAX_POOL | EXTREME | CLAMP_LIKE
SOFTMAX_ONLY = _all(aten.softmax.int, aten._softmax.default)
SIZE = _all(aten.sym_size, aten.sym_numel, aten.sym_stride)
# Functions of one value that are 0, 1 or their input, or a line, far from zero.
SATURATING = _all(
    aten.sigmoid,
    aten.sigmoid_,
    aten.tanh,
    aten.tanh_,
    aten.gelu,
    aten.gelu_,
    aten.silu,
    aten.silu_,
    aten.mish,
    aten.mish_,
    aten.hardswish,
    aten.hardswish_,
    aten.hardsigmoid,
    aten.hardsigmoid_,
)
POINTWISE = SATURATING | _all(
    aten.elu,
    aten.elu_,
    aten.celu,
    aten.selu,
    aten.leaky_relu,
    aten.leaky_relu_,
    aten.softplus,
    aten.log_sigmoid,
    aten.erf,
    aten.exp,
    aten.expm1,
    aten.log,
    aten.log1p,
    aten.sqrt,
    aten.rsqrt,
    aten.reciprocal,
    aten.abs,
    aten.square,
    aten.sin,
    aten.cos,
    aten.pow.Tensor_Scalar,
    aten.hardshrink,
    aten.softshrink,
    aten.floor,
    aten.ceil,
    aten.round,
    aten.sign,
)

CHOOSE_QPARAMS = frozenset(
    {
        qd.choose_qparams.tensor,
        qd.choose_qparams_symmetric.tensor,
        qd.choose_qparams_per_token_asymmetric.default,
        qd.choose_qparams_per_token.default,
    }
)
TO_DTYPE = aten.to.dtype


def is_op(node: object, ops: frozenset[Target]) -> bool:
    """Whether ``node`` is a call of one of ``ops``.

    Args:
        node: anything; only an FX node can be a call.
        ops: a set of overloads.
    """
    return isinstance(node, Node) and node.op == "call_function" and node.target in ops


@lru_cache(maxsize=4096)
def _argument_index(target: Target, name: str) -> tuple[int, Any, bool]:
    schema = getattr(target, "_schema", None)
    for index, argument in enumerate(schema.arguments if schema is not None else ()):
        if argument.name == name:
            return index, argument.default_value, argument.kwarg_only
    raise KeyError(f"{target} has no argument named {name!r}")


def has_argument(node: Node, name: str) -> bool:
    """Whether the operator's schema has an argument of that name."""
    try:
        _argument_index(node.target, name)
    except KeyError:
        return False
    return True


def argument(node: Node, name: str) -> Any:
    """The argument of a call by its schema name, or the schema's default.

    Args:
        node: a call_function node of an overload.
        name: the schema's name ("input", "weight", "momentum", ...).

    Raises:
        KeyError: the schema has no such argument.
    """
    index, default, kwarg_only = _argument_index(node.target, name)
    if name in node.kwargs:
        return node.kwargs[name]
    if not kwarg_only and index < len(node.args):
        return node.args[index]
    return default


def set_argument(node: Node, name: str, value: Any) -> None:
    """Set the argument of a call by its schema name, leaving all others as they are.

    Args:
        node: a call_function node of an overload.
        name: the schema's name.
        value: a node or a literal.

    Raises:
        KeyError: the schema has no such argument.
    """
    index, _, kwarg_only = _argument_index(node.target, name)
    if kwarg_only or name in node.kwargs or index > len(node.args):
        node.kwargs = {**node.kwargs, name: value}
        return
    args = list(node.args)
    args[index : index + 1] = [value]
    node.args = tuple(args)


def data_input(node: Node) -> Any:
    """The first argument of a call: what convolutions, norms and activations work on."""
    if node.args:
        return node.args[0]
    return argument(node, node.target._schema.arguments[0].name)  # type: ignore[union-attr]


def is_mutating(node: Node) -> bool:
    """Whether a call writes into one of its arguments."""
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and bool(schema.is_mutable)


def permutation(node: Node, rank: int) -> list[int] | None:
    """Where each dimension of a call's result comes from, or None if it does not permute.

    Args:
        node: a call.
        rank: the number of dimensions of its input.
    """
    order = list(range(rank))
    if node.target is aten.permute.default:
        return [d % rank for d in argument(node, "dims")]
    if node.target in COPY:
        return order
    if node.target is aten.transpose.int:
        one, other = (argument(node, name) % rank for name in ("dim0", "dim1"))
    elif node.target in (aten.t.default, aten.mT.default, aten.numpy_T.default) and rank == 2:
        one, other = 0, 1
    else:
        return None
    order[one], order[other] = order[other], order[one]
    return order


def tensor_arguments(node: Node) -> list[tuple[str, Node]]:
    """(schema name, node) of every node a call reads, in order; lists are flattened.

    Args:
        node: any node; arguments of calls without a schema have the name "".
    """
    schema = getattr(node.target, "_schema", None)
    names = [argument.name for argument in schema.arguments] if schema is not None else []
    found: list[tuple[str, Node]] = []
    for index, value in enumerate(node.args):
        _collect(names[index] if index < len(names) else "", value, found)
    for name, value in node.kwargs.items():
        _collect(name, value, found)
    return found


def _collect(name: str, value: Any, found: list[tuple[str, Node]]) -> None:
    if isinstance(value, Node):
        found.append((name, value))
    elif isinstance(value, list | tuple):
        for item in value:
            _collect(name, item, found)


def functional_operators(fn: Any) -> frozenset[Target]:
    """The operators a Python function such as ``torch.nn.functional.linear`` is exported as.

    Args:
        fn: a packet, an overload, or a function whose name is that of an ATen operator.

    Returns:
        The overloads, or an empty set if the name is not that of an operator.
    """
    if isinstance(fn, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return overloads(fn)
    name = getattr(fn, "__name__", "")
    packets = [getattr(aten, n) for n in (name, f"{name}_") if name and hasattr(aten, n)]
    return _all(*packets) if packets else frozenset()


def operator_named(name: str) -> Any:
    """The operator of a name, as graphs print it or shorter.

    Args:
        name: ``aten.add.Tensor`` (that overload), ``aten.add`` or ``add`` (all of them).

    Returns:
        An overload or a packet; None if there is no such operator.
    """
    parts = name.replace("::", ".").split(".")
    if len(parts) == 1:
        parts = ["aten", *parts]
    try:
        found = getattr(getattr(torch.ops, parts[0]), parts[1])
        return getattr(found, parts[2]) if len(parts) == 3 else found if len(parts) == 2 else None
    except (AttributeError, RuntimeError):
        return None


# Control flow: operators that take graphs.
COND = torch.ops.higher_order.cond
WHILE_LOOP = torch.ops.higher_order.while_loop
SCAN = torch.ops.higher_order.scan
MAP = torch.ops.higher_order.map_impl
