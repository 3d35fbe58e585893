"""Dynamically quantized products, which run in integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from pt2q.deploy.onnx.rewrites.rule import (
    Rule,
    array_of,
    fits,
    integer,
    is_plain_product,
    refuse,
    zero_point_of,
)


class MultiplyIntegers(Rule):
    """``DQ(q, s, z) @ DQ(w, t)`` with computed ``s``: ``(q - z) @ w * (s * t)``, in int32."""

    def __init__(self, operator: str, with_bias: bool = False) -> None:
        super().__init__()
        self._operator, self._with_bias = operator, with_bias

    def pattern(self, op: Any, q: Any, s: Any, w: Any, t: Any, bias: Any) -> Any:
        """What the rule looks for."""
        left = op.DequantizeLinear(q, s, _allow_other_inputs=True, _outputs=["left"])
        right = op.DequantizeLinear(w, t, _allow_other_inputs=True, _outputs=["right"])
        inputs = (left, right, bias) if self._with_bias else (left, right)
        return getattr(op, self._operator)(*inputs, _outputs=["product"])

    def check(
        self, context: Any, product: ir.Value, q: ir.Value, s: ir.Value, w: ir.Value, **match: Any
    ) -> Any:
        """Whether it computes the same in integers."""
        weight = array_of(w)
        if weight is None or weight.ndim != 2 or weight.dtype != np.int8:
            return refuse("the weight is no matrix in int8")
        zeros = array_of(zero_point_of(match["right"]))
        return fits(
            (is_plain_product(product), "the product is scaled or transposed"),
            (w.is_initializer() and not q.is_initializer(), "not one stored weight"),
            (array_of(s) is None, "the scale is known: runtimes fuse the static form"),
            (zeros is None or not np.any(zeros), "the weight has zero points"),
            (_scales_results(product, **match), "the scales do not belong to the results"),
        )

    def rewrite(self, op: Any, q: ir.Value, s: ir.Value, w: ir.Value, **match: Any) -> ir.Value:
        """What takes its place."""
        if integer(match["product"], "transB", 0):
            w = self.store(op, w, "t", _turned(w))
        total = op.MatMulInteger(q, w, zero_point_of(match["left"]))
        unit = op.Mul(s, match["t"])
        result: ir.Value = op.Mul(op.Cast(total, to=int(ir.DataType.FLOAT)), unit)
        return op.Add(result, match["bias"]) if self._with_bias else result


def _turned(value: ir.Value) -> np.ndarray:
    array = array_of(value)
    assert array is not None
    return np.ascontiguousarray(array.T)


def _scales_results(product: ir.Value, right: ir.Value, t: ir.Value, **_: Any) -> bool:
    """One scale, or one per column of the weight as it is multiplied."""
    scales = array_of(t)
    if scales is None or scales.ndim > 1:
        return False
    columns = 0 if integer(product, "transB", 0) else 1
    return scales.ndim == 0 or integer(right, "axis", 1) % 2 == columns
