"""The vocabulary: specs, annotations, the quantizer interface, and the plan made from them."""

from pt2q.ir.graph import EdgeOrNode

# Enters the law of sharing into the table that `pt2q.verify` checks.
from pt2q.spec import sharing_law as sharing_law
from pt2q.spec.annotation import QUANT_ANNOTATION_KEY, QuantizationAnnotation, annotation_of
from pt2q.spec.constructor import ObserverCtr, PartialWrapper
from pt2q.spec.quantizer import Quantizer, annotated_apart
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
    "ObserverCtr",
    "PartialWrapper",
    "QuantizationAnnotation",
    "QuantizationSpec",
    "QuantizationSpecBase",
    "Quantizer",
    "SharedQuantizationSpec",
    "annotated_apart",
    "annotation_of",
]
