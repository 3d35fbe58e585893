"""What this target runs quantized."""

from __future__ import annotations

from pt2q.ir.ops import CONV2D, LINEAR, RELU
from pt2q.quantizers import (
    BackendTable,
    QuantizationConfig,
    Reason,
    Rule,
    TableQuantizer,
    get_symmetric_quantization_config,
)
from pt2q.quantizers.toolkit.table.annotate import annotate_weighted
from pt2q.quantizers.toolkit.table.checks import CONSTANT_WEIGHT


def get_eager_quantization_config() -> QuantizationConfig:
    """int8 activations in one scale, int8 weights in a scale per output channel."""
    return get_symmetric_quantization_config(is_per_channel=True)


TABLE = BackendTable(
    runtime="the eager backend",
    configure=lambda mode: get_eager_quantization_config(),
    configuration="get_eager_quantization_config()",
    rules=(
        Rule(
            name="convolution",
            heads=CONV2D,
            tails=(RELU,),
            annotate=annotate_weighted,
            checks=CONSTANT_WEIGHT,
        ),
        Rule(
            name="linear",
            heads=LINEAR,
            tails=(RELU,),
            annotate=annotate_weighted,
            checks=CONSTANT_WEIGHT,
        ),
    ),
    else_in_float=Reason("eager-has-no-row", "the eager backend has no row for it"),
)


class EagerQuantizer(TableQuantizer):
    """Quantizes convolutions and linear layers, with the relu behind them."""

    table = TABLE
