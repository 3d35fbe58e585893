"""The passes that prepare and convert are made of, one per file."""

from pt2q.passes.base import Pass, run_passes, verified_passes
from pt2q.passes.batch_norm.fold import FoldConvBatchNorm
from pt2q.passes.batch_norm.qat_fold import FoldConvBatchNormQAT
from pt2q.passes.batch_norm.qat_fuse import FuseConvBatchNormQAT
from pt2q.passes.decompose.attention import DecomposeAttention
from pt2q.passes.decompose.recurrent import DecomposeRecurrent
from pt2q.passes.duplicate_dq import DuplicateDQPass
from pt2q.passes.fold_constants import FoldQuantizedConstants
from pt2q.passes.insert_observers import InsertObservers
from pt2q.passes.observers_to_qdq import ObserversToQDQ
from pt2q.passes.port_metadata import PortNodeMetaForQDQ
from pt2q.passes.prune import RemoveUnusedAttributes, RemoveUnusedConstants
from pt2q.passes.store_state import StoreStateQuantized

__all__ = [
    "DecomposeAttention",
    "DecomposeRecurrent",
    "DuplicateDQPass",
    "FoldConvBatchNorm",
    "FoldConvBatchNormQAT",
    "FoldQuantizedConstants",
    "FuseConvBatchNormQAT",
    "InsertObservers",
    "ObserversToQDQ",
    "Pass",
    "PortNodeMetaForQDQ",
    "RemoveUnusedAttributes",
    "RemoveUnusedConstants",
    "StoreStateQuantized",
    "run_passes",
    "verified_passes",
]
