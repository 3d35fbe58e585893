"""What moves, picks, pools and fills elements, told apart by what the output looks like."""

from __future__ import annotations

import operator

from pt2q.ir.ops.elementwise import CLAMP_LIKE
from pt2q.ir.ops.names import aten, every

GETITEM = operator.getitem

RESHAPE = every(
    aten.view,
    aten.reshape,
    aten._unsafe_view,
    aten.flatten,
    aten.unflatten,
    aten.squeeze,
    aten.unsqueeze,
)
PERMUTE = every(
    aten.permute,
    aten.transpose,
    aten.t,
    aten.movedim,
    aten.swapaxes,
    aten.swapdims,
    aten.numpy_T,
    aten.mT,
    aten.pixel_shuffle,
    aten.pixel_unshuffle,
    aten.channel_shuffle,
)
# They read the values of their first operand, and the sizes alone of the other.
SHAPED_LIKE = every(aten.reshape_as, aten.view_as, aten.expand_as)
SUBSET = every(aten.slice, aten.select, aten.narrow)
SPLIT = every(
    aten.split, aten.split_with_sizes, aten.chunk, aten.tensor_split, aten.unbind, aten.unsafe_split
)
REPEAT = every(aten.expand, aten.expand_as, aten.repeat, aten.repeat_interleave)
COPY = every(aten.clone, aten.contiguous, aten.alias, aten.detach)
# Operators that move elements and compute nothing.
SHAPE = RESHAPE | PERMUTE | SUBSET | SPLIT | REPEAT | COPY

CAT = every(aten.cat, aten.concat)
STACK = every(aten.stack.default)
ROLL = every(aten.roll.default)
PAD = every(aten.pad.default, aten.constant_pad_nd.default)
UPSAMPLE_BILINEAR = every(aten.upsample_bilinear2d)
UPSAMPLE_NEAREST = every(aten.upsample_nearest1d, aten.upsample_nearest2d, aten.upsample_nearest3d)

MEAN = every(aten.mean)
ADAPTIVE_AVG_POOL2D = every(aten.adaptive_avg_pool2d)
ADAPTIVE_AVG_POOL = every(
    aten.adaptive_avg_pool1d.default,
    aten.adaptive_avg_pool2d.default,
    aten._adaptive_avg_pool2d.default,
    aten.adaptive_avg_pool3d.default,
)
AVG_POOL1D = every(aten.avg_pool1d.default)
AVG_POOL2D = every(aten.avg_pool2d.default)
AVG_POOL3D = every(aten.avg_pool3d.default)
AVG_POOL = AVG_POOL1D | AVG_POOL2D | AVG_POOL3D
MAX_POOL1D = every(aten.max_pool1d.default)
MAX_POOL2D = every(aten.max_pool2d)
MAX_POOL = MAX_POOL1D | every(aten.max_pool2d.default, aten.max_pool3d.default)
EXTREME = every(aten.amax.default, aten.amin.default)
EXTREME_WITH_INDEX = every(aten.max.dim, aten.min.dim)

# All that picks and places elements of its first operand, whatever they are.
MOVES = SHAPE | every(
    aten.flip, aten.roll.default, aten.index_select.default, aten.gather.default, aten.index.Tensor
)
# Quantizing before these is quantizing after them.
MONOTONE = MOVES | STACK | CAT | MAX_POOL | EXTREME | CLAMP_LIKE

# What makes a tensor of numbers and sizes alone.
FILLED = every(
    aten.ones, aten.zeros, aten.full, aten.arange, aten.eye, aten.linspace, aten.scalar_tensor
)
SIZE = every(aten.sym_size, aten.sym_numel, aten.sym_stride)
ITEM = aten.item.default
ASSERT_METADATA = every(aten._assert_tensor_metadata)
