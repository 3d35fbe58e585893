"""Weights stored in the form that they are read in."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from pt2q.deploy.onnx.rewrites.rule import (
    Rule,
    array_of,
    fits,
    integer,
    producer_of,
    refuse,
    zero_point_of,
)


class StoreTransposed(Rule):
    """``Transpose(DQ(w, s))`` with a matrix ``w``: a product sees its dequantized weight."""

    def pattern(self, op: Any, w: Any, s: Any) -> Any:
        """What the rule looks for."""
        dequantized = op.DequantizeLinear(w, s, _allow_other_inputs=True, _outputs=["read"])
        return op.Transpose(dequantized, perm=[1, 0])

    def check(self, context: Any, w: ir.Value, s: ir.Value, read: ir.Value, **_: Any) -> Any:
        """Whether it is one stored matrix that nothing else reads."""
        weight = array_of(w)
        if weight is None or not w.is_initializer() or array_of(s) is None:
            return refuse("the weight is not stored")
        return fits(
            (weight.ndim == 2, "the weight is no matrix"),
            (len(read.uses()) == 1, "others read it as it is"),
        )

    def rewrite(self, op: Any, read: ir.Value, **_: Any) -> ir.Value:
        """What takes its place."""
        attributes = {"axis": 1 - integer(read, "axis", 1) % 2}
        block = integer(read, "block_size", 0)
        if block:
            attributes["block_size"] = block
        inputs = [self._turned(op, value) for value in producer_of(read).inputs]
        result: ir.Value = op.DequantizeLinear(*inputs, **attributes)
        return result

    def _turned(self, op: Any, value: ir.Value | None) -> ir.Value | None:
        numbers = array_of(value)
        if value is None or numbers is None or numbers.ndim != 2:
            return value
        return self.store(op, value, "t", np.ascontiguousarray(numbers.T))


class LookUpIntegers(Rule):
    """``Gather(DQ(w, s, z), i)`` along rows: only the rows that are found are dequantized.

    The same as ``(Gather(w, i) - z) * Gather(s, i)``.
    """

    def pattern(self, op: Any, w: Any, s: Any, rows: Any) -> Any:
        """What the rule looks for."""
        table = op.DequantizeLinear(w, s, _allow_other_inputs=True, _outputs=["read"])
        return op.Gather(table, rows, _outputs=["found"])

    def check(
        self, context: Any, w: ir.Value, s: ir.Value, read: ir.Value, found: ir.Value, **_: Any
    ) -> Any:
        """Whether the table is stored, with a scale per row."""
        scales = array_of(s)
        if scales is None or scales.ndim != 1 or integer(read, "axis", 1) != 0:
            return refuse("not one scale per row")
        return fits(
            (w.is_initializer(), "the table is not stored"),
            (integer(found, "axis", 0) == 0, "it does not look up rows"),
        )

    def rewrite(
        self, op: Any, w: ir.Value, s: ir.Value, rows: ir.Value, read: ir.Value, **_: Any
    ) -> ir.Value:
        """What takes its place."""
        scales, zeros = array_of(s), array_of(zero_point_of(read))
        assert scales is not None
        steps = op.Cast(op.Gather(w, rows, axis=0), to=int(ir.DataType.FLOAT))
        if zeros is not None and np.any(zeros):
            column = self.store(op, w, "zeros", zeros.reshape(-1, 1).astype(np.float32))
            steps = op.Sub(steps, op.Gather(column, rows, axis=0))
        column = self.store(op, w, "scales", scales.reshape(-1, 1))
        result: ir.Value = op.Mul(steps, op.Gather(column, rows, axis=0))
        return result


class StoreFourBits(Rule):
    """A grouped weight whose integers are in [-8, 7]: stored in 4 bits."""

    def pattern(self, op: Any, w: Any, s: Any) -> Any:
        """What the rule looks for."""
        return op.DequantizeLinear(w, s, _allow_other_inputs=True, _outputs=["read"])

    def check(self, context: Any, w: ir.Value, read: ir.Value, **_: Any) -> Any:
        """Whether it is stored in groups, and fits."""
        if not integer(read, "block_size", 0) or not w.is_initializer():
            return refuse("not stored in groups")
        numbers = array_of(w)
        if numbers is None or numbers.dtype != np.int8:
            return refuse("not in int8")
        return fits((bool(numbers.min() >= -8 and numbers.max() <= 7), "it needs more bits"))

    def rewrite(self, op: Any, w: ir.Value, s: ir.Value, read: ir.Value, **_: Any) -> ir.Value:
        """What takes its place."""
        inputs = [self._packed(op, w), s, self._packed(op, zero_point_of(read))]
        attributes = producer_of(read).attributes
        result: ir.Value = op.DequantizeLinear(*inputs, **attributes)
        return result

    def _packed(self, op: Any, value: ir.Value | None) -> ir.Value | None:
        numbers = array_of(value)
        if value is None or numbers is None:
            return value
        return self.store(op, value, "int4", numbers.astype(ml_dtypes.int4))
