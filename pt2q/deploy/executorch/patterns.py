"""Patterns that ExecuTorch looks for in what it delegates, only where they can be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

from torch.fx import GraphModule
from torch.fx.passes.infra.pass_base import PassResult

from pt2q.ir import ops
from pt2q.optional import optional_modules

_GUARD = Lock()
_before: list[tuple[type, Callable[..., Any]]] = []
_inside: list[None] = []


@contextmanager
def sought_where_possible() -> Iterator[None]:
    """Pass over the search for attention and enlarged images in graphs that have none.

    To search, ExecuTorch exports and takes apart six small programs in every process, several
    seconds, and goes through the graph twice more. No pattern of attention is without a softmax,
    none of the others without its one operator.
    """
    with _GUARD:
        if not _inside:
            _before.extend(_replaced())
        _inside.append(None)
    try:
        yield
    finally:
        with _GUARD:
            _inside.pop()
            while not _inside and _before:
                owner, call = _before.pop()
                owner.call = call  # type: ignore[attr-defined]


def _replaced() -> Iterator[tuple[type, Callable[..., Any]]]:
    names = ("convert_to_sdpa", "convert_to_upsample_bilinear2d")
    modules = optional_modules(
        *(f"executorch.backends.xnnpack._passes.{name}" for name in names), extra="executorch"
    )
    attention, enlarged = modules
    for owner, sought in (
        (attention.ConvertToSDPAPass, ops.SOFTMAX_ONLY),
        (enlarged.ConvertToUpsampleBilinear2d, ops.UPSAMPLE_BILINEAR),
    ):
        yield owner, owner.call
        owner.call = _with(sought, owner.call)


def _with(sought: frozenset[Any], call: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(self: Any, module: GraphModule) -> Any:
        if any(getattr(node.target, "_op", None) in sought for node in module.graph.nodes):
            return call(self, module)
        return PassResult(module, False)

    return guarded
