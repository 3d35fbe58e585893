"""How a node is quantized, in words."""

from __future__ import annotations

from torch.fx import Node

from pt2q.ir.experts import stack_of
from pt2q.quantizers.toolkit.config import words_for_scales
from pt2q.quantizers.toolkit.reading.tensor_roles import roles_of
from pt2q.quantizers.toolkit.table.annotate import source_of_values
from pt2q.quantizers.toolkit.table.rule import Match, When
from pt2q.spec import QuantizationSpec, annotation_of, granularity_of


def describe(match: Match, node: Node) -> str:
    """How a node is quantized, in a few words.

    Args:
        match: what it belongs to.
        node: one of the match's nodes.
    """
    spec = match.config.input_activation
    words = type_words(spec) if spec is not None else "weight only"
    if node is not match.head:
        return f"{words}, fused into {match.head.name}"
    if match.rule.when is When.INPUT_QUANTIZED:
        return f"{words}, parameters of {source_of_values(node).name}"
    found = _weight_spec(node)
    if not isinstance(found, QuantizationSpec):
        return words
    shared = words_for_scales(granularity_of(found)).replace("per ", "per-")
    return f"{words}, weight {bits_words(found)} {shared}"


def _weight_spec(node: Node) -> object:
    stack = stack_of(node)
    reader, weight = (
        (node, roles_of(node).weight) if stack is None else (stack.whole, stack.constant)
    )
    annotation = annotation_of(reader)
    return annotation.input_qspec_map.get(weight) if annotation and weight else None


def type_words(spec: QuantizationSpec) -> str:
    """``int8 static`` or ``int8 dynamic``."""
    return f"{bits_words(spec)} {'dynamic' if spec.is_dynamic else 'static'}"


def bits_words(spec: QuantizationSpec) -> str:
    """``int8``, or ``int4`` where fewer of the dtype's bits are used."""
    name = str(spec.dtype).removeprefix("torch.")
    if spec.quant_min is None or spec.quant_max is None or not name.startswith(("int", "uint")):
        return name
    bits = (spec.quant_max - spec.quant_min).bit_length()
    kind = name.rstrip("0123456789")
    return f"{kind}{min(bits, int(name.removeprefix(kind)))}"
