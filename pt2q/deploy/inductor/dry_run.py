"""Have Inductor fuse a graph, and stop it before it generates code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.fx import Graph, GraphModule

from pt2q.deploy.export import require_graph
from pt2q.deploy.inductor.compiled import CompiledModel
from pt2q.deploy.inductor.fusion import FusionReport
from pt2q.deploy.inductor.graph import for_inductor, take_input_checks
from pt2q.deploy.inductor.kernels import KernelCall, kernel_calls, report_fusion
from pt2q.deploy.inductor.settings import compile_watched, compiling
from pt2q.errors import LoweringError
from pt2q.ir.module import QuantGraphModule
from pt2q.library_output import first_line


class _Seen(Exception):
    """Ends a compilation once the fused graph is known."""


def fusion_report(
    model: GraphModule | CompiledModel,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
) -> FusionReport:
    """Say which quantized operators Inductor fuses into int8 kernels, and why not the others.

    Args:
        model: a converted model (its graph is fused but no code is generated, which takes
            seconds), or what `compile` gave, after a call.
        args, kwargs: example inputs for a converted model.

    Raises:
        LoweringError: Inductor could not process the model.
    """
    if isinstance(model, CompiledModel):
        return model.fusion
    require_graph(model)
    prepared = for_inductor(model)
    take_input_checks(prepared)
    return report_fusion(prepared, _fused(prepared, args, dict(kwargs or {})))


def _fused(
    model: QuantGraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[KernelCall, ...]:
    calls: list[KernelCall] = []

    def record(graph: Graph) -> None:
        calls.extend(kernel_calls(graph))
        raise _Seen

    def backend(graph: GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        return compile_watched(graph, inputs, record)

    run = torch.compile(model, backend=backend, fullgraph=True)
    with compiling(cached=False):  # a cached result would skip the passes to be watched
        try:
            run(*args, **kwargs)
        except Exception as error:
            if not _was_seen(error):
                raise LoweringError(f"Inductor could not compile: {first_line(error)}") from error
    return tuple(calls)


def _was_seen(error: BaseException | None) -> bool:
    chain: set[int] = set()
    while error is not None and id(error) not in chain:
        chain.add(id(error))
        if isinstance(error, _Seen):
            return True
        error = getattr(error, "inner_exception", None) or error.__cause__ or error.__context__
    return False
