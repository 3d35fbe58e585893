"""Run quantizers written for another PT2E stack.

Such a quantizer leaves its own annotation and spec objects on the nodes. They are taken by what
they carry, attribute by attribute, and turned into ours; observers of the peer that ours replace
one for one are replaced. The peer is imported only if one of its objects arrives.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

from torch.fx import Graph, Node

from pt2q import observers
from pt2q.errors import AnnotationError
from pt2q.observers import ObserverConstructor
from pt2q.spec import (
    PER_CHANNEL_SCHEMES,
    QUANT_ANNOTATION_KEY,
    DerivedQuantizationSpec,
    FixedQParamsQuantizationSpec,
    QuantizationAnnotation,
    QuantizationSpec,
    QuantizationSpecBase,
    SharedQuantizationSpec,
)


def adopt_annotations(graph: Graph) -> int:
    """Replace foreign annotations of a graph by ours.

    Args:
        graph: changed in place, in node metadata only.

    Returns:
        How many annotations were foreign.

    Raises:
        AnnotationError: an annotation or spec lacks what every one of them has.
    """
    count = 0
    for node in graph.nodes:
        found = node.meta.get(QUANT_ANNOTATION_KEY)
        if found is None or isinstance(found, QuantizationAnnotation):
            continue
        node.meta[QUANT_ANNOTATION_KEY] = _annotation(found, node)
        count += 1
    return count


def _annotation(found: Any, node: Node) -> QuantizationAnnotation:
    if not hasattr(found, "input_qspec_map"):
        raise AnnotationError(
            f"{node.name} carries a {type(found).__name__} as its annotation; use "
            "QuantizationAnnotation(input_qspec_map, output_qspec)"
        )
    inputs = {n: _spec(spec, node) for n, spec in (found.input_qspec_map or {}).items()}
    return QuantizationAnnotation(
        inputs,
        _spec(getattr(found, "output_qspec", None), node),
        bool(getattr(found, "allow_implicit_sharing", True)),
        bool(getattr(found, "_annotated", False)),
    )


def _spec(spec: Any, node: Node) -> QuantizationSpecBase | None:
    """Ours for a foreign spec, told apart by what it carries."""
    if spec is None or isinstance(spec, QuantizationSpecBase):
        return spec
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
        ctr = _constructor(spec.observer_or_fake_quant_ctr)
        return QuantizationSpec(observer_or_fake_quant_ctr=ctr, **_fields(spec))
    raise AnnotationError(
        f"{node.name} is annotated with a {type(spec).__name__}, which carries neither an "
        "observer, nor fixed parameters, nor a reference to share or derive from"
    )


def _fields(spec: Any) -> dict[str, Any]:
    scheme = getattr(spec, "qscheme", None)
    axis = getattr(spec, "ch_axis", None)
    per_channel = scheme in PER_CHANNEL_SCHEMES
    return {
        "dtype": spec.dtype,
        "quant_min": getattr(spec, "quant_min", None),
        "quant_max": getattr(spec, "quant_max", None),
        "qscheme": scheme,
        "ch_axis": (0 if axis is None else axis) if per_channel else None,
        "is_dynamic": bool(getattr(spec, "is_dynamic", False)),
    }


# ------------------------------------------------------------------ observers

SAME_NAMES = (
    "MinMaxObserver",
    "MovingAverageMinMaxObserver",
    "PerChannelMinMaxObserver",
    "MovingAveragePerChannelMinMaxObserver",
    "HistogramObserver",
    "PlaceholderObserver",
)


def _constructor(ctr: Any) -> Any:
    """Ours for a constructor of the peer whose observer ours replaces; else the same one."""
    cls, arguments = _unwrap(ctr)
    replacement = _replacements().get(cls)
    if replacement is None or not _understood(arguments):
        return ctr
    kept = {k: v for k, v in arguments.items() if k not in _MEANINGLESS}
    return ObserverConstructor(replacement).with_args(**kept)


_MEANINGLESS = frozenset(
    {"reduce_range", "memoryless", "factory_kwargs", "custom_op_name", "compute_dtype"}
)
_KNOWN = frozenset(
    {"dtype", "quant_min", "quant_max", "qscheme", "ch_axis", "is_dynamic", "eps"}
    | {"averaging_constant"}
)


def _understood(arguments: dict[str, Any]) -> bool:
    if arguments.get("reduce_range"):
        return False
    return set(arguments) <= _KNOWN | _MEANINGLESS


def _unwrap(ctr: Any) -> tuple[Any, dict[str, Any]]:
    """The class and the arguments filled in, of what a ``with_args`` gave back."""
    arguments: dict[str, Any] = {}
    partial = getattr(ctr, "p", ctr)  # a wrapper around functools.partial
    while isinstance(partial, functools.partial):
        arguments = {**partial.keywords, **arguments}
        if partial.args:
            return None, {}
        partial = getattr(partial.func, "p", partial.func)
    return partial, arguments


@functools.cache
def _peer_classes(module: str) -> dict[Any, Any]:
    peer = sys.modules[module]
    return {getattr(peer, n): getattr(observers, n) for n in SAME_NAMES if hasattr(peer, n)}


def _replacements() -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for module in ("torchao.quantization.pt2e.observer", "torch.ao.quantization.observer"):
        if module in sys.modules:
            found.update(_peer_classes(module))
    return found
