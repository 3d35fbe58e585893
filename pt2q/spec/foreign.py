"""Annotations and specs written for another PT2E stack.

Its quantizers leave annotation and spec objects of its own on the nodes. They are taken by what
they carry, attribute by attribute, and turned into ours. The other stack is never imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch.fx import Graph, Node

from pt2q.errors import AnnotationError, SpecError
from pt2q.ir.dtypes import STORED_AS, is_per_channel
from pt2q.spec.annotation import QUANT_ANNOTATION_KEY, QuantizationAnnotation
from pt2q.spec.constructor import unwrapped
from pt2q.spec.specs import (
    DerivedQuantizationSpec,
    FixedQParamsQuantizationSpec,
    QuantizationSpec,
    QuantizationSpecBase,
    SharedQuantizationSpec,
)

Replacement: TypeAlias = Callable[[Any], Any]
"""Our constructor for one of the other stack's, or that one itself."""


def adopt_annotations(graph: Graph, replacement_for: Replacement) -> int:
    """Replace foreign annotations of a graph by ours.

    Args:
        graph: changed in place, in node metadata only.
        replacement_for: our constructor for one of the other stack's.

    Returns:
        How many annotations were foreign.

    Raises:
        AnnotationError: an annotation or spec lacks what every one of them has.
    """
    adopted = 0
    for node in graph.nodes:
        found = node.meta.get(QUANT_ANNOTATION_KEY)
        if found is None or isinstance(found, QuantizationAnnotation):
            continue
        node.meta[QUANT_ANNOTATION_KEY] = _annotation(found, node, replacement_for)
        adopted += 1
    return adopted


def _annotation(found: Any, node: Node, replacement_for: Replacement) -> QuantizationAnnotation:
    if not hasattr(found, "input_qspec_map"):
        raise AnnotationError(
            f"{node.name} carries a {type(found).__name__} as its annotation; use "
            "QuantizationAnnotation(input_qspec_map, output_qspec)"
        )
    given = found.input_qspec_map or {}
    inputs = {n: _spec(spec, node, replacement_for) for n, spec in given.items()}
    return QuantizationAnnotation(
        inputs,
        _spec(getattr(found, "output_qspec", None), node, replacement_for),
        bool(getattr(found, "allow_implicit_sharing", True)),
        bool(getattr(found, "_annotated", False)),
    )


def _spec(spec: Any, node: Node, replacement_for: Replacement) -> QuantizationSpecBase | None:
    """Ours for a foreign spec, told apart by what it carries."""
    if spec is None or isinstance(spec, QuantizationSpecBase):
        return spec
    try:
        found = _translated(spec, replacement_for)
    except SpecError as error:
        raise AnnotationError(
            f"{node.name} is annotated with a {type(spec).__name__} that cannot be used: {error}"
        ) from error
    if found is not None:
        return found
    raise AnnotationError(
        f"{node.name} is annotated with a {type(spec).__name__}, which carries neither an "
        "observer, nor fixed parameters, nor a reference to share or derive from"
    )


def _translated(spec: Any, replacement_for: Replacement) -> QuantizationSpecBase | None:
    if hasattr(spec, "edge_or_node"):
        return SharedQuantizationSpec(spec.edge_or_node)
    if hasattr(spec, "derived_from"):
        return DerivedQuantizationSpec(
            tuple(spec.derived_from), spec.derive_qparams_fn, **_fields(spec)
        )
    if hasattr(spec, "scale") and hasattr(spec, "zero_point"):
        fields = {k: v for k, v in _fields(spec).items() if k != "ch_axis"}
        return FixedQParamsQuantizationSpec(scale=spec.scale, zero_point=spec.zero_point, **fields)
    if hasattr(spec, "observer_or_fake_quant_ctr"):
        ctr = spec.observer_or_fake_quant_ctr
        return QuantizationSpec(
            observer_or_fake_quant_ctr=replacement_for(ctr),
            # An observer that replaces itself at conversion: the spec's numbers are nominal.
            **_fields(spec, nominal=callable(getattr(unwrapped(ctr)[0], "convert", None))),
        )
    return None


def _fields(spec: Any, *, nominal: bool = False) -> dict[str, Any]:
    scheme = getattr(spec, "qscheme", None)
    axis = getattr(spec, "ch_axis", None)
    per_channel = is_per_channel(scheme)
    low, high = getattr(spec, "quant_min", None), getattr(spec, "quant_max", None)
    dtype = STORED_AS.get(spec.dtype, spec.dtype)
    if (low is None) != (high is None) or (nominal and not _fits(dtype, low, high)):
        low = high = None
    return {
        "dtype": dtype,
        "quant_min": low,
        "quant_max": high,
        "qscheme": scheme,
        "ch_axis": (0 if axis is None else axis) if per_channel else None,
        "is_dynamic": bool(getattr(spec, "is_dynamic", False)),
    }


def _fits(dtype: torch.dtype, low: int | None, high: int | None) -> bool:
    if low is None or high is None or dtype.is_floating_point:
        return True
    info = torch.iinfo(dtype)
    return info.min <= low < high <= info.max
