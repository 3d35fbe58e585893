"""Parameters per channel, lined up with the tensor they belong to."""

from __future__ import annotations


def shape_along(axis: int | None, dim: int) -> list[int]:
    """Return the shape in which values per channel broadcast.

    Args:
        axis: the axis they run along; None for a single value.
        dim: number of dimensions of the tensor they meet.
    """
    shape = [1] * dim
    if axis is not None:
        shape[axis] = -1
    return shape
