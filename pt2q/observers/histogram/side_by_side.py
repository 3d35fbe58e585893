"""Small tensors that are kept for long lie side by side, not where they were made.

Thousands of samples stay between one batch and the next. Each by itself would lie between the
activations of its batch, and the next batch's would not fit into what is free between them: the
process grows by the size of its activations, though next to nothing is kept.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

_SIZE = 2**18  # a mebibyte
_LARGEST = _SIZE // 8


class _Block(threading.local):
    """What is being filled, by each thread for itself. It lives as long as one of its parts."""

    def __init__(self) -> None:
        self.values: Tensor | None = None
        self.used = _SIZE


_BLOCK = _Block()


def kept(values: Tensor) -> Tensor:
    """Return a copy that lies beside what was kept before.

    Args:
        values: of one dimension. What is large, or not float32 on the host, is cloned.
    """
    size = values.numel()
    if type(values) is not Tensor or values.dtype is not torch.float32 or not values.is_cpu:
        return values.clone()
    if size > _LARGEST:
        return values.clone()
    return room_for(size).copy_(values)


def room_for(size: int) -> Tensor:
    """Return that many float32 values, not written yet, beside what was kept before.

    Args:
        size: an eighth of a block at most.
    """
    start, block = _BLOCK.used, _BLOCK.values
    if block is None or start + size > _SIZE:
        block = torch.empty(_SIZE, device="cpu", dtype=torch.float32)
        _BLOCK.values, start = block, 0
    _BLOCK.used = end = start + size
    return block[start:end]
