"""The integer form of each operator: one small function per operator, found in `RULES`.

==================  ===========================================================================
`products`          convolution, transposed convolution, linear (per group too), matmul, mul, div
`sums`              add, sub, mean, average pooling, batch norm
`tables`            functions of one value, softmax
`shapes`            shape operators, cat, pad, max pooling, clamps, nearest upsampling
`rescale`           requantize, quantize, dequantize
==================  ===========================================================================
"""

from pt2q.ir.qparams import QParams
from pt2q.passes.reference import products as products
from pt2q.passes.reference import shapes as shapes
from pt2q.passes.reference import sums as sums
from pt2q.passes.reference import tables as tables
from pt2q.passes.reference.operators import RULES, Call, reference_rule
from pt2q.passes.reference.rewrite import ReferenceReport
from pt2q.passes.reference.values import (
    NoIntegerForm,
    Quantized,
    Sum,
    Term,
    Value,
)

__all__ = [
    "RULES",
    "Call",
    "NoIntegerForm",
    "QParams",
    "Quantized",
    "ReferenceReport",
    "Sum",
    "Term",
    "Value",
    "reference_rule",
]
