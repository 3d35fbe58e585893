"""How much of a tensor shares one scale: the words.

A spec says it with ``qscheme`` and ``ch_axis``, or through its observer (``group_size``,
``per_token``, ``granularity``); `pt2q.spec.granularity_of` resolves all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pt2q.errors import SpecError


@dataclass(frozen=True)
class Granularity:
    """Base of the ways to divide a tensor into parts with a scale each."""

    def part_of(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The size of a part along each axis of a tensor; use `get_block_size`, which checks."""
        raise NotImplementedError


@dataclass(frozen=True)
class PerTensor(Granularity):
    """One scale for the whole tensor."""

    def part_of(self, shape: Sequence[int]) -> tuple[int, ...]:
        """All of it."""
        return tuple(shape)


@dataclass(frozen=True)
class PerAxis(Granularity):
    """A scale for each index of one axis: for [A, B] and axis 0, A scales.

    Args:
        axis: the axis that is kept.
    """

    axis: int

    def part_of(self, shape: Sequence[int]) -> tuple[int, ...]:
        """1 along the axis, all of the others."""
        kept = range(len(shape))[self.axis]
        return tuple(1 if i == kept else size for i, size in enumerate(shape))


@dataclass(frozen=True)
class PerRow(Granularity):
    """A scale for each row: one axis is reduced, all others are kept.

    Args:
        dim: the axis that is reduced; for [A, B] and -1, A scales.
    """

    dim: int = -1

    def part_of(self, shape: Sequence[int]) -> tuple[int, ...]:
        """All of the axis, 1 along the others."""
        reduced = range(len(shape))[self.dim]
        return tuple(size if i == reduced else 1 for i, size in enumerate(shape))


@dataclass(frozen=True)
class PerToken(Granularity):
    """A scale for each token, found at run time: the last axis is reduced."""

    def part_of(self, shape: Sequence[int]) -> tuple[int, ...]:
        """All of the last axis, 1 along the others."""
        return PerRow(-1).part_of(shape)


@dataclass(frozen=True)
class PerBlock(Granularity):
    """A scale for each block; for a tensor of more axes than the block has, of its last ones.

    Args:
        block_size: the size of a block along each axis; ``(1, g)`` is `PerGroup` of ``g``.

    Raises:
        SpecError: a size is no positive whole number.
    """

    block_size: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "block_size", tuple(self.block_size))
        _check_sizes("PerBlock: block_size", self.block_size)

    def part_of(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The block, 1 along the axes before it."""
        return (1,) * (len(shape) - len(self.block_size)) + self.block_size


@dataclass(frozen=True)
class PerGroup(Granularity):
    """A scale for each run of neighbours along the last axis.

    Args:
        group_size: how many neighbours share a scale.

    Raises:
        SpecError: it is no positive whole number.
    """

    group_size: int

    def __post_init__(self) -> None:
        _check_sizes("PerGroup: group_size", (self.group_size,))

    def part_of(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The group, 1 along the other axes."""
        return PerBlock((self.group_size,)).part_of(shape)


def _check_sizes(what: str, sizes: Sequence[object]) -> None:
    if not sizes or not all(type(size) is int and size > 0 for size in sizes):
        raise SpecError(f"{what}: expected positive whole numbers, found {list(sizes)}")


def get_block_size(shape: Sequence[int], granularity: Granularity) -> tuple[int, ...]:
    """The size of a part along each axis, for a tensor of a shape.

    Args:
        shape: of the tensor.
        granularity: how it is divided.

    Raises:
        SpecError: the shape cannot be divided like that.
    """
    try:
        part = granularity.part_of(shape)
    except IndexError:
        part = ()
    if len(part) == len(shape) and all(
        size % by == 0 for size, by in zip(shape, part, strict=True)
    ):
        return part
    raise SpecError(f"{granularity} does not divide a tensor of shape {tuple(shape)}")
