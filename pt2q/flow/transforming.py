"""What a quantizer makes of a model before it annotates."""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule

from pt2q.errors import FlowError
from pt2q.flow.integer_scalars import (
    constants_read,
    restore_integer_scalars,
    unite_integer_types,
)
from pt2q.ir import ops
from pt2q.ir.module import QuantGraphModule, copy_module
from pt2q.ir.record import record_of
from pt2q.library_output import first_line
from pt2q.passes import ComposeLinear, DecomposeAttention, FoldComputedWeights, run_passes
from pt2q.spec import Quantizer


def transform(module: GraphModule, quantizer: Quantizer) -> None:
    """Let a quantizer transform a model; integers stay integers.

    Quantizers of other libraries take ``addmm`` and fused attention apart into steps that they do
    not take themselves. Where one fails on a model that has them, it is asked again with linear
    layers, and with matrix products and a softmax, in their place.

    Args:
        module: changed in place.
        quantizer: of this library or of another.

    Raises:
        Exception: whatever the quantizer raises the first time, where that does not help.
    """
    before = copy_module(module) if _has_products(module) else None
    known = constants_read(module)
    try:
        take(module, quantizer.transform_for_annotation(module))
    except Exception as error:
        if before is None:
            raise
        done = _written_otherwise(before)
        if not done:
            raise
        known = constants_read(before)
        take(module, quantizer.transform_for_annotation(before))
        for name, how in done:
            _tell(module, name, how, error)
    restore_integer_scalars(module, known)
    unite_integer_types(module)


def _written_otherwise(module: QuantGraphModule) -> list[tuple[str, str]]:
    """Write the operators that others fail on as simpler ones; which they were, and as what."""
    done = []
    if ComposeLinear(turn=True, unscale=True)(module):
        run_passes(module, [FoldComputedWeights()])
        done.append(("addmm", "linear layers"))
    if DecomposeAttention()(module):
        done.append(("scaled_dot_product_attention", "matrix products and a softmax"))
    module.recompile()
    return done


def _tell(module: GraphModule, name: str, how: str, error: Exception) -> None:
    record = record_of(module)
    if record is not None:
        why = f"{name} was written as {how}, since the quantizer failed: {first_line(error)}"
        record.note("transform_for_annotation", name, why)


def _has_products(module: GraphModule) -> bool:
    return any(ops.is_op(node, ops.ADDMM | ops.SDPA) for node in module.graph.nodes)


def take(model: GraphModule, result: Any) -> None:
    """Adopt what a quantizer gave back, which may be another module.

    Args:
        model: changed in place.
        result: what the quantizer gave back.

    Raises:
        FlowError: it is no module.
    """
    if result is model or result is None:
        return
    if not isinstance(result, GraphModule):
        raise FlowError(f"a quantizer must give back the model, found {type(result).__name__}")
    moved = copy_module(result)
    model.__dict__.update({k: moved.__dict__[k] for k in ("_modules", "_parameters", "_buffers")})
    model.graph = moved.graph
