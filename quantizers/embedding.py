"""`EmbeddingQuantizer`: embedding tables in int8, a scale per row."""

from __future__ import annotations

import torch
from torch.fx import Node

from pt2q.ir.ops import EMBEDDING
from pt2q.quantizers.toolkit import checks
from pt2q.quantizers.toolkit.annotate import annotate_weighted
from pt2q.quantizers.toolkit.config import EPS, QuantizationConfig
from pt2q.quantizers.toolkit.engine import TableQuantizer
from pt2q.quantizers.toolkit.rules import Rule
from pt2q.spec import QuantizationSpec

EMBEDDING_RULES = (
    Rule(
        "embedding",
        EMBEDDING,
        annotate_weighted,
        checks=(checks.constant_weight, checks.float32_only),
    ),
)


def get_embedding_quantization_config() -> QuantizationConfig:
    """Weight only: int8 [-128, 127], affine, a scale and zero point per row of the table."""
    from pt2q.observers import PerChannelMinMaxObserver

    weight = QuantizationSpec(
        dtype=torch.int8,
        quant_min=-128,
        quant_max=127,
        qscheme=torch.per_channel_affine,
        ch_axis=0,
        observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(eps=EPS),
    )
    return QuantizationConfig(None, None, weight)


class EmbeddingQuantizer(TableQuantizer):
    """Quantizes the tables of embeddings, and nothing else.

    The rows an embedding looks up are dequantized where they are read, so a table takes a
    quarter of the memory if the backend fuses the two. Combine it with another quantizer by
    `ComposableQuantizer`.

    Args:
        default: taken in place of `get_embedding_quantization_config`.
    """

    def __init__(self, default: QuantizationConfig | None = None) -> None:
        super().__init__(default or get_embedding_quantization_config())

    def rules(self, config: QuantizationConfig) -> tuple[Rule, ...]:
        """One rule."""
        return EMBEDDING_RULES

    def why_float(self, node: Node, config: QuantizationConfig) -> str:
        """Not an embedding."""
        return "the embedding quantizer quantizes embeddings only"
