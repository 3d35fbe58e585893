"""`WeightQuantizer`: linear layers and convolutions, by their weights."""

from __future__ import annotations

from pt2q.quantizers.toolkit.engine.table_quantizer import TableQuantizer
from pt2q.quantizers.weights.table import WEIGHTS


class WeightQuantizer(TableQuantizer):
    """Quantizes linear layers, and convolutions unless asked for groups, by their weights.

    ``WeightQuantizer()`` stores weights in int8 and computes in float. Other configurations add
    activations, or store fewer bits; see `pt2q.quantizers.weights.configs`::

        quantizer = WeightQuantizer(get_dynamic_activation_4bit_weight_config(group_size=32))

    Args:
        default: how to quantize.
    """

    table = WEIGHTS
