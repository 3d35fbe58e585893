"""What fusing for training leaves for folding after it."""

from __future__ import annotations

from dataclasses import dataclass

from pt2q.ir.record import FlowRecord


@dataclass(frozen=True)
class FusedPair:
    """A layer and its batch norm, written so that the quantized weight is the folded one.

    Args:
        layer: name of the convolution or linear node.
        norm: name of the batch norm node.
        weight: name of the node of the scaled weight, which a fake quantizer may follow.
        bias_reader: name of the node that reads the layer's own bias, "" without one.
        helpers: names of all nodes that fusing added, in the order of the graph.
    """

    layer: str
    norm: str
    weight: str
    bias_reader: str
    helpers: tuple[str, ...]


@dataclass(frozen=True)
class FusedPairs:
    """All pairs of a module, as its record keeps them."""

    pairs: tuple[FusedPair, ...]


def fused_pairs(record: FlowRecord) -> tuple[FusedPair, ...]:
    """The pairs that were fused in a module, by its record."""
    found = record.get(FusedPairs)
    return () if found is None else found.pairs
