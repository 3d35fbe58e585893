"""The passes that prepare and convert are made of, one per file.

=============  ==================================================================================
`transform`    what quantizers and targets do to the float model first, such as taking layers apart
`prepare`      control flow opened, observers inserted
`batch_norm`   batch norms folded, or fused with their layer for training
`convert`      observers to quantize and dequantize, constants stored quantized
`reference`    quantized operators as integer arithmetic
=============  ==================================================================================
"""

from pt2q.passes.batch_norm.fold import FoldConvBatchNorm
from pt2q.passes.batch_norm.qat_fold import FoldConvBatchNormQAT
from pt2q.passes.batch_norm.qat_fuse import FuseConvBatchNormQAT
from pt2q.passes.convert.close_control_flow import CloseControlFlow
from pt2q.passes.convert.duplicate_dq import DuplicateDQPass
from pt2q.passes.convert.fold_constants import FoldQuantizedConstants
from pt2q.passes.convert.observers_to_qdq import ObserversToQDQ
from pt2q.passes.convert.own_tensors import OwnTensors
from pt2q.passes.convert.port_metadata import PortNodeMetaForQDQ
from pt2q.passes.convert.store_state import StoreStateQuantized
from pt2q.passes.convert.unused_attributes import RemoveUnusedAttributes
from pt2q.passes.convert.unused_constants import RemoveUnusedConstants
from pt2q.passes.pipeline import Pass, run_passes, verified_passes
from pt2q.passes.prepare.insert_observers import InsertObservers
from pt2q.passes.prepare.open_control_flow import OpenControlFlow
from pt2q.passes.prepare.size_learned_scales import SizeLearnedScales
from pt2q.passes.reference import RewriteToReference
from pt2q.passes.transform.attention import DecomposeAttention
from pt2q.passes.transform.compose_linear import ComposeLinear
from pt2q.passes.transform.computed_weights import FoldComputedWeights
from pt2q.passes.transform.einsum import DecomposeEinsum
from pt2q.passes.transform.float32 import ComputeInFloat32
from pt2q.passes.transform.own_biases import OwnBiases
from pt2q.passes.transform.product_with_addition import SplitProducts
from pt2q.passes.transform.recurrent import DecomposeRecurrent
from pt2q.passes.transform.rows_of_stacks import StoreStacksByRows

__all__ = [
    "CloseControlFlow",
    "ComposeLinear",
    "ComputeInFloat32",
    "DecomposeAttention",
    "DecomposeEinsum",
    "DecomposeRecurrent",
    "DuplicateDQPass",
    "FoldComputedWeights",
    "FoldConvBatchNorm",
    "FoldConvBatchNormQAT",
    "FoldQuantizedConstants",
    "FuseConvBatchNormQAT",
    "InsertObservers",
    "ObserversToQDQ",
    "OpenControlFlow",
    "OwnBiases",
    "OwnTensors",
    "Pass",
    "PortNodeMetaForQDQ",
    "RemoveUnusedAttributes",
    "RemoveUnusedConstants",
    "RewriteToReference",
    "SizeLearnedScales",
    "SplitProducts",
    "StoreStacksByRows",
    "StoreStateQuantized",
    "run_passes",
    "verified_passes",
]
