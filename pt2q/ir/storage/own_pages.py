"""Large tensors in pages of their own, which the process gives back when they are dropped.

What an allocator gets back it may keep: a float weight in the middle of its heap stays resident
after the last model that used it is gone.
"""

from __future__ import annotations

import math
import mmap

import torch
from torch import Tensor

_LARGE = 2**20


def empty_in_own_pages(shape: torch.Size, dtype: torch.dtype) -> Tensor | None:
    """A tensor on the host, of zeros; None where pages of its own do not pay or do not exist.

    Args:
        shape: its shape.
        dtype: its dtype.
    """
    size = math.prod(shape) * dtype.itemsize
    # Pages of Windows are shared by name alone, and a forked process must not write into these.
    if size < _LARGE or not hasattr(mmap, "MAP_PRIVATE"):
        return None
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=dtype).reshape(shape)
