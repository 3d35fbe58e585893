"""`EmbeddingQuantizer`: embedding tables in 8 bits, a scale and zero point per row."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import nn

from pt2q.ir.ops import EMBEDDING, operator_named
from pt2q.quantizers.toolkit.authoring import OperatorConfig
from pt2q.quantizers.toolkit.config import Mode, QuantizationConfig
from pt2q.quantizers.toolkit.engine.table_quantizer import TableQuantizer
from pt2q.quantizers.toolkit.reasons import EMBEDDINGS_ONLY
from pt2q.quantizers.toolkit.table import checks, examples
from pt2q.quantizers.toolkit.table.annotate import annotate_weighted
from pt2q.quantizers.toolkit.table.backend_table import BackendTable
from pt2q.quantizers.toolkit.table.kernel_limits import INT8, UINT8, KernelLimits, TensorLimits
from pt2q.quantizers.toolkit.table.rule import Rule
from pt2q.quantizers.toolkit.usual_observers import weight_constructor
from pt2q.spec import PerAxis, QuantizationSpec

T = TypeVar("T", bound=TableQuantizer)

MIN_SCALE = 2.0**-60
"""The smallest scale: rows are multiplied by it in float32, and nothing else."""
TABLE_LIMITS = TensorLimits(
    stored=(UINT8.scaled(PerAxis), INT8.scaled(PerAxis)), min_scale=MIN_SCALE
)
LOOKUP = Rule(
    name="embedding",
    heads=EMBEDDING,
    kernel=KernelLimits(
        activation=TensorLimits(stored=()), weight=TABLE_LIMITS, float_activation=True
    ),
    annotate=annotate_weighted,
    checks=(checks.constant_weight, checks.one_float_type),
    examples=(examples.LOOKUP,),
)


def get_embedding_operators_config() -> OperatorConfig:
    """Weight only: uint8 [0, 255], a scale and a zero point in float32 per row of the table.

    ExecuTorch fuses this form into its ``embedding_byte``.
    """
    weight = _table_spec(torch.uint8, torch.per_channel_affine_float_qparams)
    config = QuantizationConfig(None, None, weight)
    return OperatorConfig(config, [[nn.Embedding], [nn.functional.embedding]])


def get_embedding_quantization_config() -> QuantizationConfig:
    """Weight only: int8 [-128, 127], a scale and a zero point in integers per row of the table.

    ONNX has no other zero points.
    """
    return QuantizationConfig(None, None, _table_spec(torch.int8, torch.per_channel_affine))


def _table_spec(dtype: torch.dtype, qscheme: torch.qscheme) -> QuantizationSpec:
    limits = torch.iinfo(dtype)
    return QuantizationSpec(
        dtype=dtype,
        quant_min=limits.min,
        quant_max=limits.max,
        qscheme=qscheme,
        ch_axis=0,
        observer_or_fake_quant_ctr=weight_constructor(
            per_channel=True, is_qat=False, min_scale=TABLE_LIMITS.min_scale
        ),
    )


EMBEDDINGS = BackendTable(
    runtime="EmbeddingQuantizer",
    configure=lambda mode: get_embedding_operators_config().config,
    configuration="get_embedding_operators_config().config",
    rules=(LOOKUP,),
    else_in_float=EMBEDDINGS_ONLY,
    else_in_float_dynamic=EMBEDDINGS_ONLY,
)


class EmbeddingQuantizer(TableQuantizer):
    """Quantizes the tables of embeddings, and nothing else.

    The rows an embedding looks up are dequantized where they are read, so a table takes a
    quarter of the memory if the backend fuses the two. Combine it with another quantizer by
    `ComposableQuantizer`.

    Args:
        default: taken in place of `get_embedding_operators_config`; ONNX wants
            `get_embedding_quantization_config`.
    """

    table = EMBEDDINGS


@dataclass(frozen=True, kw_only=True)
class _OneForm(KernelLimits):
    """A lookup in tables of one form, however what is around it is quantized.

    Args:
        form: the configuration of the tables.
    """

    form: QuantizationConfig

    def fitted(self, config: QuantizationConfig) -> QuantizationConfig:
        """See `KernelLimits.fitted`."""
        return self.form


def with_embeddings(quantizer: T, config: QuantizationConfig) -> T:
    """A backend's quantizer that quantizes tables of embeddings, too.

    The tables have one form under every statement that gives a configuration; a statement of None
    leaves them in float, as any operator.

    Args:
        quantizer: gets a row and a statement.
        config: of the tables, such as `get_embedding_quantization_config` gives.
    """
    limits = {name: getattr(LOOKUP.kernel, name) for name in ("activation", "weight")}
    kernel = _OneForm(**limits, float_activation=True, form=config)
    quantizer.add_rule(replace(LOOKUP, kernel=kernel, modes=frozenset(Mode)))
    return quantizer.set_operator_type(operator_named("aten.embedding"), config)
