"""Run quantizers written for another PT2E stack.

Such a quantizer leaves its own annotation and spec objects on the nodes. They are taken by what
they carry, attribute by attribute, and turned into ours; observers and fake quantizers of the peer
that ours replace one for one are replaced, all others are used as they are. The peer is never
imported: its classes are looked up only where one of its objects arrived, and so it is loaded.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import replace
from typing import Any

import torch
from torch.fx import Graph, Node

from pt2q.errors import AnnotationError, SpecError
from pt2q.observers import fake_quantize
from pt2q.observers import standard as observers
from pt2q.observers.standard import ObserverConstructor
from pt2q.spec.specs import (
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
    adopted: dict[Node, QuantizationAnnotation] = {}
    for node in graph.nodes:
        found = node.meta.get(QUANT_ANNOTATION_KEY)
        if found is None or isinstance(found, QuantizationAnnotation):
            continue
        node.meta[QUANT_ANNOTATION_KEY] = adopted[node] = _annotation(found, node)
    for node in graph.nodes:
        _unite_observers(node, adopted)
    return len(adopted)


def _unite_observers(node: Node, adopted: dict[Node, QuantizationAnnotation]) -> None:
    """Give specs of one value that differ in their observer alone the first one's.

    There, tensors of one value share parameters whatever observer each spec names, and backends
    count on it: between an operator and the next there is one quantize.
    """
    first: dict[Any, QuantizationSpec] = {}
    own = adopted.get(node)
    if own is not None and own.allow_implicit_sharing:
        own.output_qspec = _first_alike(own.output_qspec, first)
    for user in node.users:
        reader = adopted.get(user)
        if reader is not None and reader.allow_implicit_sharing and node in reader.input_qspec_map:
            specs = reader.input_qspec_map
            specs[node] = _first_alike(specs[node], first)


def _first_alike(
    spec: QuantizationSpecBase | None, first: dict[Any, QuantizationSpec]
) -> QuantizationSpecBase | None:
    if not isinstance(spec, QuantizationSpec):
        return spec
    return first.setdefault(replace(spec, observer_or_fake_quant_ctr=_any_observer), spec)


def _any_observer(**_: Any) -> None:
    return None


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
    try:
        found = _translated(spec)
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


def _translated(spec: Any) -> QuantizationSpecBase | None:
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
            **_fields(spec, nominal=_writes_its_own_operators(ctr)),
        )
    return None


_STORED_AS = {torch.quint8: torch.uint8, torch.qint8: torch.int8, torch.qint32: torch.int32}


def _fields(spec: Any, *, nominal: bool = False) -> dict[str, Any]:
    scheme = getattr(spec, "qscheme", None)
    axis = getattr(spec, "ch_axis", None)
    per_channel = scheme in PER_CHANNEL_SCHEMES
    low, high = getattr(spec, "quant_min", None), getattr(spec, "quant_max", None)
    dtype = _STORED_AS.get(spec.dtype, spec.dtype)
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


def _writes_its_own_operators(ctr: Any) -> bool:
    """Whether the observer replaces itself at conversion: then the spec's numbers are nominal."""
    return callable(getattr(_unwrap(ctr)[0], "convert", None))


# ------------------------------------------------------------------ observers

_OBSERVERS = (
    "MinMaxObserver",
    "MovingAverageMinMaxObserver",
    "PerChannelMinMaxObserver",
    "MovingAveragePerChannelMinMaxObserver",
    "HistogramObserver",
    "PlaceholderObserver",
    "NoopObserver",
)
_FAKE_QUANTIZERS = ("FakeQuantize", "FusedMovingAvgObsFakeQuantize")
_PEER_MODULES = (
    "torchao.quantization.pt2e.observer",
    "torchao.quantization.pt2e.fake_quantize",
    "torch.ao.quantization.observer",
    "torch.ao.quantization.fake_quantize",
)

# What says nothing about the result, or nothing at its usual value.
_MEANINGLESS = frozenset({"memoryless", "factory_kwargs", "custom_op_name", "compute_dtype"})
_KNOWN = frozenset(
    {"dtype", "quant_min", "quant_max", "qscheme", "ch_axis", "is_dynamic", "eps"}
    | {"averaging_constant"}
)


def replacement_for(ctr: Any) -> Any:
    """Ours for a constructor of the peer whose observer or fake quantizer ours replaces.

    Args:
        ctr: a class, or what its ``with_args`` returned.

    Returns:
        Our constructor with the same arguments, or ``ctr`` itself.
    """
    cls, arguments = _unwrap(ctr)
    ours = _replacements().get(cls) if isinstance(cls, type) else None
    if ours is None or arguments.pop("reduce_range", False):
        return ctr
    if isinstance(arguments.get("dtype"), torch.dtype):
        arguments["dtype"] = _STORED_AS.get(arguments["dtype"], arguments["dtype"])
    if issubclass(ours, fake_quantize.FakeQuantize) and "observer" in arguments:
        arguments["observer"] = replacement_for(arguments["observer"])
        if not _is_ours(arguments["observer"]):
            return ctr
    if not set(arguments) <= _KNOWN | _MEANINGLESS | {"observer"}:
        return ctr
    kept = {k: v for k, v in arguments.items() if k not in _MEANINGLESS}
    return ObserverConstructor(ours).with_args(**kept)


def _is_ours(ctr: Any) -> bool:
    cls = getattr(ctr, "cls", ctr)
    return isinstance(cls, type) and issubclass(cls, observers.ObserverBase)


def _unwrap(ctr: Any) -> tuple[Any, dict[str, Any]]:
    """The class and the arguments filled in, of what a ``with_args`` gave back."""
    arguments: dict[str, Any] = {}
    at = ctr
    while not isinstance(at, type):
        if getattr(at, "callable_args", None):  # arguments made anew at each call
            return None, {}
        partial = getattr(at, "p", at)  # a wrapper around functools.partial
        if not isinstance(partial, functools.partial) or partial.args:
            return None, {}
        arguments = {**partial.keywords, **arguments}
        at = partial.func
    return at, arguments


def _replacements() -> dict[Any, Any]:
    """Our class for each of the peer's that is loaded."""
    return {
        cls: ours
        for module in _PEER_MODULES
        if module in sys.modules
        for cls, ours in _peer_classes(module).items()
    }


@functools.cache
def _peer_classes(module: str) -> dict[Any, Any]:
    peer = sys.modules[module]
    pairs = [(name, observers) for name in _OBSERVERS]
    pairs += [(name, fake_quantize) for name in _FAKE_QUANTIZERS]
    return {getattr(peer, n): getattr(ours, n) for n, ours in pairs if hasattr(peer, n)}


def is_foreign(observer: Any) -> bool:
    """Whether an observer or fake quantizer in a model is of another library."""
    return not isinstance(observer, observers.ObserverBase | fake_quantize.FakeQuantize)


def saw_data(observer: Any) -> bool:
    """Whether an observer or fake quantizer of another library has seen a value.

    Args:
        observer: one that keeps ``min_val`` and ``max_val``, as all that follow a range do; of
            any other it is not known, and its own ``calculate_qparams`` has to tell.
    """
    watched = getattr(observer, "activation_post_process", observer)
    low, high = getattr(watched, "min_val", None), getattr(watched, "max_val", None)
    if not isinstance(low, torch.Tensor) or not isinstance(high, torch.Tensor):
        return True
    return low.numel() > 0 and bool((low <= high).any())
