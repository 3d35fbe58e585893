"""What quantization did to each weight."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch.fx import Node

from pt2q.debug import reasons
from pt2q.debug.comparison.float_constants import FloatConstants
from pt2q.debug.comparison.stored_weight import StoredWeight, stored_weight
from pt2q.debug.error import Error
from pt2q.debug.error_sums import ErrorSums
from pt2q.ir import ops
from pt2q.ir.constants import Constants
from pt2q.ir.control_flow import named_graph_modules
from pt2q.ir.module import QuantGraphModule, copy_module, deferred_code
from pt2q.passes import run_passes
from pt2q.passes.batch_norm.fold import FoldConvBatchNorm
from pt2q.quantizers.toolkit.reasons import Reason


@dataclass(frozen=True)
class WeightRow:
    """One quantized constant against the float one.

    Args:
        name: of the constant, in the quantized model.
        argument: as which its operator reads it, such as ``weight``.
        error: the quantized against the float constant (with its batch norm folded in, where the
            quantized model has folded it).
    """

    name: str
    argument: str
    error: Error


@dataclass(frozen=True)
class FoundWeight:
    """A quantized constant and who reads it.

    Args:
        path: of the body.
        node: the reader, in the quantized model.
        name: of the constant, with its path.
        row: its error, or None.
        reason: why there is no error, where that is known.
    """

    path: str
    node: Node
    name: str
    row: WeightRow | None
    reason: Reason | None = None


def quantized_weights(
    floating: QuantGraphModule, quantized: QuantGraphModule
) -> Iterator[FoundWeight]:
    """Every quantized constant that an operator reads, beside its float one.

    Args:
        floating, quantized: what `own_copy` gave.
    """
    with deferred_code():
        folded = run_passes(copy_module(floating), [FoldConvBatchNorm()])
    plain, scaled = FloatConstants(floating), FloatConstants(folded)
    for path, module in named_graph_modules(quantized):
        assert isinstance(module, QuantGraphModule)
        constants = Constants(module)
        for node in [n for n in module.graph.nodes if n.op == "call_function"]:
            for name, argument in ops.tensor_arguments(node):
                if ops.is_op(node, ops.DEQUANTIZE | ops.QUANTIZE):
                    continue
                stored = stored_weight(module, constants, argument)
                if stored is not None:
                    yield _compare(path, node, name, stored, plain, scaled)


def _compare(
    path: str,
    node: Node,
    name: str,
    stored: StoredWeight,
    plain: FloatConstants,
    scaled: FloatConstants,
) -> FoundWeight:
    called = path + stored.target
    is_folded = stored.is_scaled or plain.is_batch_norm(path, node)
    reference, value = (scaled if is_folded else plain).find(path, node, name, stored)
    sums = ErrorSums()
    if reference is None or sums.add(reference, value):
        reason = reasons.NO_FLOAT_CONSTANT.filled(constant=called)
        return FoundWeight(path, node, called, None, reason)
    error = sums.result()
    row = None if error is None else WeightRow(called, name, error)
    return FoundWeight(path, node, called, row)
