"""Biases of products in uint8, stored in the unit of the products' sums.

ONNX Runtime does so itself where the result is quantized too; where it is float, it has its product
in integers only with such a bias. Symmetric int8 is left alone: TensorRT wants biases in float.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from pt2q.deploy.onnx.rewrites.rule import (
    Rule,
    array_of,
    fits,
    is_plain_product,
    producer_of,
    refuse,
    zero_point_of,
)


class _Biased(Rule):
    """A product of an activation in uint8 with a stored weight, and what stores its bias."""

    def check(self, context: Any, product: ir.Value, **match: Any) -> Any:
        """Whether the bias has a unit to be stored in, and fits into it."""
        unit, zero_point = _unit(match["s"], match["t"]), array_of(zero_point_of(match["left"]))
        if unit is None:
            return refuse("not one known scale, or the weight has none per result")
        if zero_point is None or zero_point.dtype != np.uint8:
            return refuse("the activation is not in uint8")
        numbers = array_of(match["bias"])
        stored = match["bias"].is_initializer()
        if numbers is None or numbers.shape != unit.shape or not stored:
            return refuse("the bias is no stored vector")
        return fits(
            (is_plain_product(product), "the product is scaled or transposed"),
            (_reads_one_weight(**match), "not one stored weight"),
            (bool(np.abs(_steps(numbers, unit)).max(initial=0) < 2**31), "it does not fit int32"),
        )

    def in_sums(self, op: Any, bias: ir.Value, s: ir.Value, t: ir.Value) -> ir.Value:
        """The bias as int32, dequantized."""
        unit, numbers = _unit(s, t), array_of(bias)
        assert unit is not None and numbers is not None
        inputs = (
            self.store(op, bias, "int32", _steps(numbers, unit).astype(np.int32)),
            self.store(op, bias, "unit", unit.astype(np.float32)),
            self.store(op, bias, "zero", np.zeros(unit.shape, np.int32)),
        )
        result: ir.Value = op.DequantizeLinear(*inputs, axis=0)
        return result


class StoreBias(_Biased):
    """``Gemm(DQ(q, s, z), DQ(w, t), bias)``."""

    def pattern(self, op: Any, q: Any, s: Any, w: Any, t: Any, bias: Any) -> Any:
        """What the rule looks for."""
        left = op.DequantizeLinear(q, s, _allow_other_inputs=True, _outputs=["left"])
        right = op.DequantizeLinear(w, t, _allow_other_inputs=True, _outputs=["right"])
        return op.Gemm(left, right, bias, _outputs=["product"])

    def rewrite(self, op: Any, product: ir.Value, left: ir.Value, **match: Any) -> ir.Value:
        """What takes its place."""
        bias = self.in_sums(op, match["bias"], match["s"], match["t"])
        attributes = producer_of(product).attributes
        result: ir.Value = op.Gemm(left, match["right"], bias, **attributes)
        return result


class StoreAddedBias(_Biased):
    """``DQ(q, s, z) @ DQ(w, t) + bias``."""

    def pattern(self, op: Any, q: Any, s: Any, w: Any, t: Any, bias: Any) -> Any:
        """What the rule looks for."""
        left = op.DequantizeLinear(q, s, _allow_other_inputs=True, _outputs=["left"])
        right = op.DequantizeLinear(w, t, _allow_other_inputs=True, _outputs=["right"])
        return op.Add(op.MatMul(left, right, _outputs=["product"]), bias)

    def check(self, context: Any, product: ir.Value, **match: Any) -> Any:
        """Whether the bias belongs to this product alone, and fits."""
        if len(product.uses()) > 1:
            return refuse("the product has other readers")
        return super().check(context, product, **match)

    def rewrite(self, op: Any, product: ir.Value, **match: Any) -> ir.Value:
        """What takes its place."""
        result: ir.Value = op.Add(product, self.in_sums(op, match["bias"], match["s"], match["t"]))
        return result


def _reads_one_weight(q: ir.Value, w: ir.Value, **_: Any) -> bool:
    return bool(w.is_initializer() and not q.is_initializer())


def _unit(scale: ir.Value, scales: ir.Value) -> np.ndarray | None:
    """What one step of the sums is worth, per result."""
    activation, weight = array_of(scale), array_of(scales)
    if activation is None or activation.size != 1 or weight is None or weight.ndim != 1:
        return None
    unit: np.ndarray = weight * activation.reshape(())
    return unit


def _steps(numbers: np.ndarray, unit: np.ndarray) -> np.ndarray:
    steps: np.ndarray = np.round(numbers.astype(np.float64) / unit)
    return steps
