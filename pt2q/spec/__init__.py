"""The vocabulary: specs, annotations, the quantizer interface, and the plan made from them."""

from pt2q.ir.graph import EdgeOrNode

# Enters the law of sharing into the table that `pt2q.verify` checks.
from pt2q.spec import sharing_law as sharing_law
from pt2q.spec.annotation import QUANT_ANNOTATION_KEY, QuantizationAnnotation, annotation_of
from pt2q.spec.constructor import ObserverOrFakeQuantizeConstructor, PartialWrapper
from pt2q.spec.granularity import (
    Granularity,
    PerAxis,
    PerBlock,
    PerGroup,
    PerRow,
    PerTensor,
    PerToken,
    get_block_size,
)
from pt2q.spec.mapping import MappingType, ZeroPointDomain
from pt2q.spec.quantizer import Quantizer, annotated_apart
from pt2q.spec.resolved_granularity import granularity_from, granularity_made_by, granularity_of
from pt2q.spec.specs import (
    DerivedQuantizationSpec,
    FixedQParamsQuantizationSpec,
    QuantizationSpec,
    QuantizationSpecBase,
    SharedQuantizationSpec,
)

__all__ = [
    "QUANT_ANNOTATION_KEY",
    "DerivedQuantizationSpec",
    "EdgeOrNode",
    "FixedQParamsQuantizationSpec",
    "Granularity",
    "MappingType",
    "ObserverOrFakeQuantizeConstructor",
    "PartialWrapper",
    "PerAxis",
    "PerBlock",
    "PerGroup",
    "PerRow",
    "PerTensor",
    "PerToken",
    "QuantizationAnnotation",
    "QuantizationSpec",
    "QuantizationSpecBase",
    "Quantizer",
    "SharedQuantizationSpec",
    "ZeroPointDomain",
    "annotated_apart",
    "annotation_of",
    "get_block_size",
    "granularity_from",
    "granularity_made_by",
    "granularity_of",
]
