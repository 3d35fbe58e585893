"""Which tensors share storage, who writes into it, and how sharing survives copies and pickles."""

from pt2q.ir.storage.effects import Effects, effects_of
from pt2q.ir.storage.identity import copies, has_storage, place_of, span_of, storage_of
from pt2q.ir.storage.parts import packed, unpacked
from pt2q.ir.storage.storage_map import StorageMap
from pt2q.ir.storage.views import View, restore_views, views_among

__all__ = [
    "Effects",
    "StorageMap",
    "View",
    "copies",
    "effects_of",
    "has_storage",
    "packed",
    "place_of",
    "restore_views",
    "span_of",
    "storage_of",
    "unpacked",
    "views_among",
]
