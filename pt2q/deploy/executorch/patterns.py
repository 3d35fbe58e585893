"""Patterns that ExecuTorch looks for in what it delegates, only where they can be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch.fx import GraphModule
from torch.fx.passes.infra.pass_base import PassResult

from pt2q.ir import ops
from pt2q.optional import optional_modules
from pt2q.replaced import replaced


@contextmanager
def sought_where_possible() -> Iterator[None]:
    """Pass over the search for attention and enlarged images in graphs that have none.

    To search, ExecuTorch exports and takes apart six small programs in every process, several
    seconds, and goes through the graph twice more. No pattern of attention is without a softmax,
    none of the others without its one operator. Lowerings take turns: each puts back what it found.
    """
    names = ("convert_to_sdpa", "convert_to_upsample_bilinear2d")
    modules = (f"executorch.backends.xnnpack._passes.{name}" for name in names)
    attention, enlarged = optional_modules(*modules, extra="executorch")
    sought = {
        attention.ConvertToSDPAPass: ops.SOFTMAX_ONLY,
        enlarged.ConvertToUpsampleBilinear2d: ops.UPSAMPLE_BILINEAR,
    }
    with ExitStack() as stack:
        for owner, operators in sought.items():
            stack.enter_context(replaced(owner, call=_with(operators, owner.call)))
        yield


def _with(sought: frozenset[Any], call: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(self: Any, module: GraphModule) -> Any:
        if any(getattr(node.target, "_op", None) in sought for node in module.graph.nodes):
            return call(self, module)
        return PassResult(module, False)

    return guarded
