"""Large tensors in parts, so that what is held on the way to a smaller type stays small."""

from __future__ import annotations

from torch import Tensor

# Elements that are held in float32 on the way.
_AT_ONCE = 2**18


def row_parts(x: Tensor) -> list[slice]:
    """The rows of a tensor in parts of some elements; none where it is small, or has no rows.

    Args:
        x: of any shape; its rows lie along the first dimension.
    """
    if x.numel() <= _AT_ONCE or x.dim() < 2:
        return []
    count = max(_AT_ONCE * x.shape[0] // x.numel(), 1)
    return [slice(start, start + count) for start in range(0, x.shape[0], count)]
