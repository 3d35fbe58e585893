"""Which batch norm belongs to which convolution or linear: read from the graph, nothing changed.

Shared by folding for inference and by the fusion for quantization-aware training.
"""

from pt2q.ir.batch_norm.moved import layer_before_moves
from pt2q.ir.batch_norm.pairing import constants_reason, pair_reason
from pt2q.ir.batch_norm.reading import (
    BatchNorm,
    Layer,
    batch_norms,
    is_training,
    layer_of,
    read_batch_norm,
)

__all__ = [
    "BatchNorm",
    "Layer",
    "batch_norms",
    "constants_reason",
    "is_training",
    "layer_before_moves",
    "layer_of",
    "pair_reason",
    "read_batch_norm",
]
