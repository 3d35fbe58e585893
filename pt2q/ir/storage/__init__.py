"""Which tensors share storage, who writes into it, and how sharing survives copies and pickles."""

from pt2q.ir.storage.effects import Effects, effects_of
from pt2q.ir.storage.identity import copies, has_storage, place_of, span_of, storage_of
from pt2q.ir.storage.mapped import is_low, low_memory, release, spilled
from pt2q.ir.storage.parts import Part, packed, unpacked
from pt2q.ir.storage.storage_map import StorageMap, writes_nothing, written_constants
from pt2q.ir.storage.views import View, restore_views, views_among

__all__ = [
    "Effects",
    "Part",
    "StorageMap",
    "View",
    "copies",
    "effects_of",
    "has_storage",
    "is_low",
    "low_memory",
    "packed",
    "place_of",
    "release",
    "restore_views",
    "span_of",
    "spilled",
    "storage_of",
    "unpacked",
    "views_among",
    "writes_nothing",
    "written_constants",
]
