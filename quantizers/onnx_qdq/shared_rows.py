"""What the tables of the runtimes that read ONNX have in common."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pt2q.ir import ops
from pt2q.ir.ops import is_op
from pt2q.quantizers.toolkit import reasons
from pt2q.quantizers.toolkit.reasons import Reason
from pt2q.quantizers.toolkit.table import common_rows, examples
from pt2q.quantizers.toolkit.table.annotate import annotate_weighted_inputs
from pt2q.quantizers.toolkit.table.backend_table import BackendTable
from pt2q.quantizers.toolkit.table.products import of_product
from pt2q.quantizers.toolkit.table.rule import Match, Rule, in_training

FUSED = ops.RELU | ops.RELU6 | ops.HARDTANH


@dataclass(frozen=True, kw_only=True)
class OnnxTable(BackendTable):
    """The table of a runtime that reads ONNX.

    Args:
        leaves_out_relu: it leaves out a relu behind which the grid ends where the relu does.
    """

    leaves_out_relu: bool


def _computed_factors(match: Match) -> Reason | None:
    if is_op(match.head, ops.MATMUL) and match.roles.weight is not None:
        return reasons.CONSTANT_FACTOR
    return None


def with_training(convolution: Rule, transposed: Rule) -> tuple[Rule, ...]:
    """Rows of convolutions, each followed by its form in training."""
    return (
        convolution,
        in_training(convolution, examples.CONVOLUTION_IN_TRAINING),
        transposed,
        in_training(transposed, examples.TRANSPOSED_IN_TRAINING),
    )


CONVOLUTION = replace(
    common_rows.CONVOLUTION, heads=ops.CONV1D | ops.CONV2D | ops.CONV3D, tails=(FUSED,)
)
LINEAR = replace(common_rows.LINEAR, tails=(FUSED,), annotate=annotate_weighted_inputs)
PRODUCT = replace(common_rows.PRODUCT, checks=(*common_rows.PRODUCT.checks, _computed_factors))
IN_FLOAT = (
    (ops.SDPA, reasons.FUSED_ATTENTION),
    (ops.BATCH_NORM, reasons.BATCH_NORM_ALONE),
    (ops.PRODUCT_ADDED, of_product(reasons.CONSTANT_FACTOR, reasons.NO_INT8_KERNEL)),
)
