"""Parameters of activations that are found at run time."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from pt2q.deploy.onnx.rewrites.rule import Rule


class QuantizeOnce(Rule):
    """``QuantizeLinear(x, s, z)`` with both from ``DynamicQuantizeLinear(x)``: its first output."""

    def pattern(self, op: Any, x: Any) -> Any:
        """What the rule looks for."""
        _, scale, zero_point = op.DynamicQuantizeLinear(x, _outputs=["steps", "scale", "zero"])
        return op.QuantizeLinear(x, scale, zero_point)

    def rewrite(self, op: Any, steps: ir.Value, **_: Any) -> ir.Value:
        """What takes its place."""
        return steps
