"""The module on its way from float to quantized: made, copied, checked, pickled."""

from pt2q.ir.module.copying import copy_module
from pt2q.ir.module.graph_module import QuantGraphModule, deferred_code
from pt2q.ir.module.importing import EXPORT_HINT, import_exported
from pt2q.ir.module.input_check import InputCheck
from pt2q.ir.module.size_relations import exported_size
from pt2q.ir.record import FlowRecord, Note, Stage, note

__all__ = [
    "EXPORT_HINT",
    "FlowRecord",
    "InputCheck",
    "Note",
    "QuantGraphModule",
    "Stage",
    "copy_module",
    "deferred_code",
    "exported_size",
    "import_exported",
    "note",
]
