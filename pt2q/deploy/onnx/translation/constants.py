"""Constants of translated operators, and the ranges of their types."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript import opset18 as op


def number(value: float) -> Any:
    """A float32 constant."""
    return op.Constant(value_float=float(value))


def zero_point_of(value: float, dtype: int) -> Any:
    """A constant of an integer or float8 type.

    Args:
        value: its value.
        dtype: a type of ONNX, as a number.
    """
    array = np.array(value, dtype=ir.DataType(dtype).numpy())
    return op.Constant(value=ir.tensor(array, dtype=ir.DataType(dtype)))


def bounds_of(dtype: int) -> tuple[float, float] | None:
    """The least and the greatest integer of a type; None for floats."""
    kind = ir.DataType(dtype).numpy()
    if not np.issubdtype(kind, np.integer):
        return None
    return float(np.iinfo(kind).min), float(np.iinfo(kind).max)


def is_narrower(low: float, high: float, dtype: int) -> bool:
    """Whether a range leaves out integers of its type."""
    bounds = bounds_of(dtype)
    return bounds is not None and (low > bounds[0] or high < bounds[1])


def cast_out(value: Any, out_dtype: int | None) -> Any:
    """A dequantized value in the type asked for; None, -1 and 1 are float32."""
    return value if out_dtype in (None, -1, 1) else op.Cast(value, to=out_dtype)
