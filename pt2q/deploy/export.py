"""What every target asks of a model before anything else, and its export in the target's form."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule

from pt2q.errors import (
    ComputesInFloat32Warning,
    FlowError,
    LoweringError,
    NotExportedError,
    Pt2qError,
)
from pt2q.ir import ops
from pt2q.ir.dtypes import CAST_DTYPES
from pt2q.ir.module import EXPORT_HINT, QuantGraphModule, Stage
from pt2q.ir.qparams import quantized_nodes
from pt2q.library_output import first_line, quiet_python
from pt2q.observers.base.one_at_a_time import OneAtATime
from pt2q.passes import ComputeInFloat32, run_passes
from pt2q.passes.transform.float32 import half_types

ONE_EXPORT = OneAtATime()
"""Held while a model is exported or lowered: torch.export and ExecuTorch do it in globals."""


def refuse_prepared(model: object) -> None:
    """Refuse a model whose observers are still in it.

    Args:
        model: what the user wants to deploy.

    Raises:
        FlowError: it is prepared and not converted.
    """
    stage = model.record.stage if isinstance(model, QuantGraphModule) else None
    if stage in (Stage.PREPARED, Stage.PREPARED_QAT):
        raise FlowError(
            "this model is prepared, not converted: calibrate or train it, and deploy what "
            "convert_pt2e(model) gives"
        )


def require_graph(model: object) -> None:
    """Refuse what has no graph, and what `refuse_prepared` refuses.

    Args:
        model: what the user wants to deploy.

    Raises:
        NotExportedError: it was never captured with ``torch.export``.
        FlowError: it is prepared and not converted.
    """
    if not isinstance(model, GraphModule | ExportedProgram):
        raise NotExportedError(
            f"{type(model).__name__} was never captured with torch.export; {EXPORT_HINT}"
        )
    refuse_prepared(model)


def why_not_groups(graph: Graph) -> str:
    """What to do about products of groups of rows, for which runtimes have no kernel.

    Args:
        graph: of a program that could not be lowered.

    Returns:
        The end of a sentence; "" if there is none.
    """
    found = [n.name for n in graph.nodes if ops.known_as(n.target) in ops.GROUPED_MM]
    if not found:
        return ""
    return (
        f"; {found[0]} multiplies groups of rows by a matrix each, which the runtime has no kernel "
        "for, not in float either. Have the matrices picked for each row: "
        "experts_implementation='batched_mm' in transformers"
    )


def in_float32(
    model: QuantGraphModule, runtime: str, keeps: tuple[torch.dtype, ...] = CAST_DTYPES
) -> None:
    """Let a quantized model in half precision compute in float32, and say so.

    Args:
        model: a copy, changed in place. What is not quantized at all stays as it is.
        runtime: as people call it, for the warning.
        keeps: the types that its inputs and outputs keep; others become float32 there too.
    """
    found = half_types(model) if quantized_nodes(model) else ()
    if found:
        run_passes(model, [ComputeInFloat32(keeps)])
        names = " and ".join(str(dtype).removeprefix("torch.") for dtype in found)
        warnings.warn(
            f"the model computes in {names}, and {runtime} in float32 alone: its inputs and "
            f"outputs {'are converted' if set(found) <= set(keeps) else 'become float32'}, and "
            "what is not quantized is stored in float32",
            ComputesInFloat32Warning,
            stacklevel=5,
        )


def export_rewritten(
    model: nn.Module | ExportedProgram,
    rewrite: Callable[[Any], nn.Module],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
) -> ExportedProgram:
    """Export a model once more, in the form that a target takes.

    Args:
        model: a module that ``torch.export`` takes, or a program that is exported already.
        rewrite: gives the module to export; must leave the one that it is given as it is.
        args, kwargs: example inputs.
        dynamic_shapes: as for ``torch.export.export``.

    Raises:
        LoweringError: the model cannot be exported with these inputs, or `rewrite` says why it
            cannot be deployed.
    """
    module = model.module(check_guards=False) if isinstance(model, ExportedProgram) else model
    try:
        with ONE_EXPORT, torch.no_grad():
            rewritten = rewrite(module)
            with quiet_python():
                return torch.export.export(
                    rewritten, tuple(args), dict(kwargs or {}), dynamic_shapes=dynamic_shapes
                )
    except Pt2qError:
        raise
    except Exception as error:
        raise LoweringError(
            f"torch.export could not capture the model with the given inputs: {first_line(error)}"
        ) from error
