"""What writes, what only seems to, and the operators that pt2q adds for training."""

from __future__ import annotations

import torch

from pt2q.ir.ops.layers import BATCH_NORM, DROPOUT
from pt2q.ir.ops.names import aten, every

# Operators that may give their first input, or a view of it, though their schema promises a new
# tensor.
MAY_RETURN_INPUT = DROPOUT | every(
    aten.type_as,
    aten._unsafe_view,
    aten.unsafe_split,
    aten.unsafe_split_with_sizes,
    aten.unsafe_chunk,
    aten.atleast_1d.default,
    aten.atleast_2d.default,
    aten.atleast_3d.default,
)
# Each of their results may be a view of the operand in its place.
VIEWS_EACH = every(
    aten.meshgrid,
    aten.broadcast_tensors,
    aten.atleast_1d.Sequence,
    aten.atleast_2d.Sequence,
    aten.atleast_3d.Sequence,
)
EINSUM = every(aten.einsum)

# In place by their schema, but no element changes.
WRITES_NOTHING = every(aten.detach_)
# What writes the elements of one tensor into another and computes nothing.
INDEX_PUT = every(aten.index_put, aten.index_put_)
STORES = every(aten.copy_, aten.index_put_, aten.index_copy_, aten.scatter_.src)

COUNT_ONE = aten.add_.Tensor
COUNT = frozenset({COUNT_ONE})

# Its function is in `pt2q.training.scaled_batch_norm`.
library = torch.library.Library("pt2q", "FRAGMENT")
library.define(
    "scaled_batch_norm(Tensor input, Tensor factor, Tensor? own_bias, Tensor? weight, "
    "Tensor? bias, Tensor running_mean, Tensor running_var, bool training, float momentum, "
    "float eps) -> Tensor"
)
SCALED_BATCH_NORM = torch.ops.pt2q.scaled_batch_norm.default

# A copy of a buffer that the same step updates later. An operator of its own, because a compiler
# would compute a clone anew in the backward pass, when the buffer has changed.
library.define("snapshot(Tensor input) -> Tensor")
library.impl("snapshot", torch.clone, "CPU")
library.impl("snapshot", torch.clone, "CUDA")
library.impl("snapshot", torch.empty_like, "Meta")
SNAPSHOT = torch.ops.pt2q.snapshot.default
BATCH_NORM_IN_TRAINING = BATCH_NORM | {SCALED_BATCH_NORM}

# In training they move running statistics, which their schemas do not say.
UPDATES_STATISTICS = BATCH_NORM_IN_TRAINING | every(
    aten.native_batch_norm.default,
    aten.cudnn_batch_norm.default,
    aten._batch_norm_impl_index,
    aten.instance_norm,
)
