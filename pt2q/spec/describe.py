"""Specs in words, for plans, reports and messages."""

from __future__ import annotations

from pt2q.ir.graph import edge_name
from pt2q.spec.specs import (
    DerivedQuantizationSpec,
    FixedQParamsQuantizationSpec,
    QuantizationSpec,
    QuantizationSpecBase,
    SharedQuantizationSpec,
)


def describe_spec(spec: QuantizationSpecBase) -> str:
    """A spec in a few words, such as ``int8[-127, 127] per_channel_symmetric axis 0``."""
    if isinstance(spec, SharedQuantizationSpec):
        return f"shared with {edge_name(spec.edge_or_node)}"
    if not isinstance(
        spec, QuantizationSpec | FixedQParamsQuantizationSpec | DerivedQuantizationSpec
    ):
        return str(spec)
    words = [str(spec.dtype).removeprefix("torch.")]
    if spec.quant_min is not None:
        words[0] += f"[{spec.quant_min}, {spec.quant_max}]"
    if spec.qscheme is not None:
        words.append(str(spec.qscheme).removeprefix("torch."))
    if getattr(spec, "ch_axis", None) is not None:
        words.append(f"axis {spec.ch_axis}")  # type: ignore[union-attr]
    if isinstance(spec, FixedQParamsQuantizationSpec):
        words.append(f"scale {spec.scale:g} zero_point {spec.zero_point}")
    if spec.is_dynamic:
        words.append("dynamic")
    return " ".join(words)
