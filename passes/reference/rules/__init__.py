"""The integer form of each operator: one small function per operator, found in `RULES`.

==================  =================================================================
`convolution`       convolution, transposed convolution
`matrix_products`   linear, matmul, mm, bmm, addmm
`grouped_linear`    linear with a scale for each group of neighbours in the weight
`elementwise`       add, sub, rsub, neg, mul, div
`means`             mean, adaptive average pooling
`average_pool`      average pooling
`batch_norm`        a batch norm that was not folded
`movement`          shape operators, getitem, cat, stack, pad
`order`             max pooling, amax, amin, clamps
`upsample`          nearest upsampling
`tables`            functions of one value
`softmax`           softmax
==================  =================================================================
"""

from pt2q.passes.reference.rules import (
    average_pool,
    batch_norm,
    convolution,
    elementwise,
    matrix_products,
    means,
    movement,
    order,
    softmax,
    tables,
    upsample,
)

__all__ = [
    "average_pool",
    "batch_norm",
    "convolution",
    "elementwise",
    "matrix_products",
    "means",
    "movement",
    "order",
    "softmax",
    "tables",
    "upsample",
]
