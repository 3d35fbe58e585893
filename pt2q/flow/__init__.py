"""The main calls: prepare, calibrate or train, convert. Each is a visible list of passes."""

from pt2q.flow.annotating import annotate
from pt2q.flow.converting import conversion_passes, convert_pt2e, reference_passes
from pt2q.flow.preparing import prepare_pt2e, prepare_qat_pt2e
from pt2q.flow.provenance import Provenance, provenance_of
from pt2q.ir.data_digest import DataDigest, DataUsed

__all__ = [
    "DataDigest",
    "DataUsed",
    "Provenance",
    "annotate",
    "conversion_passes",
    "convert_pt2e",
    "prepare_pt2e",
    "prepare_qat_pt2e",
    "provenance_of",
    "reference_passes",
]
