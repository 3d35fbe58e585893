"""Activations and arithmetic: what works on each element by itself."""

from __future__ import annotations

from pt2q.ir.ops.names import aten, every

RELU = every(aten.relu, aten.relu_)
RELU6 = every(aten.relu6, aten.relu6_)
HARDTANH = every(aten.hardtanh, aten.hardtanh_)
CLAMP = every(aten.clamp, aten.clamp_, aten.clamp_min, aten.clamp_min_)
HARDSWISH = every(aten.hardswish, aten.hardswish_)
SILU = every(aten.silu, aten.silu_)
GELU = every(aten.gelu, aten.gelu_)
ADD = every(aten.add, aten.add_)
SUB = every(aten.sub, aten.sub_)
RSUB = every(aten.rsub)
MUL = every(aten.mul, aten.mul_)
DIV = every(aten.div.Tensor, aten.div.Scalar, aten.div_.Tensor, aten.div_.Scalar)
NEG = every(aten.neg, aten.neg_)
multiply, multiply_ = aten.mul.Tensor, aten.mul_.Tensor
TO_DTYPE = aten.to.dtype
CASTS = every(aten.to, aten._to_copy, aten.type_as)
hardtanh_backward = aten.hardtanh_backward.default

# f(s x) = s f(x) for every s > 0.
HOMOGENEOUS = RELU | NEG | every(aten.leaky_relu, aten.leaky_relu_, aten.abs)

# What integer arithmetic has a form of its own for; see `pt2q.passes.reference`.
CLAMP_LIKE = (
    RELU
    | RELU6
    | HARDTANH
    | every(
        aten.clamp.default,
        aten.clamp_.default,
        aten.clamp_min.default,
        aten.clamp_min_.default,
        aten.clamp_max.default,
        aten.clamp_max_.default,
    )
)
SOFTMAX_ONLY = every(aten.softmax.int, aten._softmax.default)

# What attention masks are built of: elementwise selection, scaling and casts.
MASK_ARITHMETIC = (
    ADD
    | SUB
    | MUL
    | RSUB
    | every(
        aten.where,
        aten.masked_fill,
        aten.masked_fill_,
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

# Functions of one value that are 0, 1 or their input, or a line, far from zero.
GATES = every(aten.sigmoid, aten.sigmoid_, aten.tanh, aten.tanh_)
SATURATING = every(
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
POINTWISE = SATURATING | every(
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
