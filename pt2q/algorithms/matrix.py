"""Every operator with a weight as the matrix product it is: ``y = columns(x) @ rows(w)^T``.

``rows(w)`` is ``[groups, out / groups, k]`` and ``columns(x)`` is ``[groups, n, k]``: ``k`` inputs
for each of ``n`` positions, patches unrolled for convolutions (Chellapilla et al. 2006, "High
Performance Convolutional Neural Networks for Document Processing").
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.fx import Node
from torch.nn import functional as F

from pt2q.ir import ops


class MatrixForm(Protocol):
    """How an operator's weight and input are seen as matrices."""

    def rows(self, weight: Tensor) -> Tensor:
        """The weight as ``[groups, out / groups, k]``; also scales of the weight's shape."""
        ...

    def weight(self, rows: Tensor, like: Tensor) -> Tensor:
        """The weight again, in the shape and memory order of ``like``."""
        ...

    def columns(self, x: Tensor) -> Tensor:
        """The input as ``[groups, n, k]``."""
        ...

    def channels(self, y: Tensor) -> Tensor:
        """The output as ``[n, out]``."""
        ...


@dataclass(frozen=True)
class Product:
    """A linear layer, or a product with a matrix.

    Args:
        transposed: the weight is ``[in, out]``, as a second factor is, and not ``[out, in]``.
    """

    transposed: bool

    def rows(self, weight: Tensor) -> Tensor:
        """See `MatrixForm.rows`."""
        return (weight.t() if self.transposed else weight)[None]

    def weight(self, rows: Tensor, like: Tensor) -> Tensor:
        """See `MatrixForm.weight`."""
        return torch.empty_like(like).copy_(rows[0].t() if self.transposed else rows[0])

    def columns(self, x: Tensor) -> Tensor:
        """See `MatrixForm.columns`."""
        return x.reshape(1, -1, x.shape[-1])

    def channels(self, y: Tensor) -> Tensor:
        """See `MatrixForm.channels`."""
        return y.reshape(-1, y.shape[-1])


@dataclass(frozen=True)
class Patches:
    """How a convolution of any dimension reads its input: one value per dimension."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def of(self, x: Tensor) -> Tensor:
        """``[groups, n, k]`` of ``[batch, channels, ...]``."""
        dims = len(self.size)
        sides = zip(reversed(self.before), reversed(self.after), strict=True)
        x = F.pad(x, [side for pair in sides for side in pair])
        for d in range(dims):
            span = self.dilation[d] * (self.size[d] - 1) + 1
            x = x.unfold(2 + d, span, self.stride[d])[..., :: self.dilation[d]]
        batch, channels, *positions = x.shape[: 2 + dims]
        x = x.reshape(batch, self.groups, channels // self.groups, *x.shape[2:])
        order = (1, 0, *range(3, 3 + dims), 2, *range(3 + dims, 3 + 2 * dims))
        k = channels // self.groups * math.prod(self.size)
        return x.permute(order).reshape(self.groups, batch * math.prod(positions), k)


@dataclass(frozen=True)
class Convolution:
    """A convolution of any dimension; the weight is ``[out, in / groups, ...]``."""

    patches: Patches

    def rows(self, weight: Tensor) -> Tensor:
        """See `MatrixForm.rows`."""
        groups = self.patches.groups
        return weight.reshape(groups, weight.shape[0] // groups, -1)

    def weight(self, rows: Tensor, like: Tensor) -> Tensor:
        """See `MatrixForm.weight`."""
        return torch.empty_like(like).copy_(rows.reshape(like.shape))

    def columns(self, x: Tensor) -> Tensor:
        """See `MatrixForm.columns`."""
        return self.patches.of(_batched(x, len(self.patches.size)))

    def channels(self, y: Tensor) -> Tensor:
        """See `MatrixForm.channels`."""
        y = _batched(y, len(self.patches.size))
        return y.movedim(1, -1).reshape(-1, y.shape[1])


@dataclass(frozen=True)
class TransposedConvolution:
    """A transposed convolution; the weight is ``[in, out / groups, ...]``.

    It is the convolution of the input with ``stride - 1`` zeros between its elements by the weight
    turned round (Dumoulin and Visin 2016, "A guide to convolution arithmetic", relationship 13).
    """

    patches: Patches
    spread: tuple[int, ...]

    def rows(self, weight: Tensor) -> Tensor:
        """See `MatrixForm.rows`."""
        groups, sizes = self.patches.groups, weight.shape[2:]
        split = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], *sizes)
        turned = _turned(split.transpose(1, 2))
        return turned.reshape(groups, weight.shape[1], -1)

    def weight(self, rows: Tensor, like: Tensor) -> Tensor:
        """See `MatrixForm.weight`."""
        groups, sizes = self.patches.groups, like.shape[2:]
        split = rows.reshape(groups, like.shape[1], like.shape[0] // groups, *sizes)
        turned = _turned(split).transpose(1, 2)
        return torch.empty_like(like).copy_(turned.reshape(like.shape))

    def columns(self, x: Tensor) -> Tensor:
        """See `MatrixForm.columns`."""
        x = _batched(x, len(self.spread))
        sizes = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], self.spread, strict=True)]
        apart = x.new_zeros(*x.shape[:2], *sizes)
        steps = (slice(None), slice(None), *(slice(None, None, s) for s in self.spread))
        apart[steps] = x
        return self.patches.of(apart)

    def channels(self, y: Tensor) -> Tensor:
        """See `MatrixForm.channels`."""
        return Convolution(self.patches).channels(y)


def _turned(weight: Tensor) -> Tensor:
    """``[groups, ., ., ...]`` with its spatial dimensions reversed."""
    spatial = list(range(3, weight.dim()))
    return torch.flip(weight, spatial)


def _batched(x: Tensor, dims: int) -> Tensor:
    return x if x.dim() == dims + 2 else x[None]


def matrix_form_of(node: Node, weight_shape: tuple[int, ...]) -> MatrixForm | None:
    """How an operator is seen as a matrix product, or None if it is none of these.

    Args:
        node: a call.
        weight_shape: that of its weight.
    """
    if ops.is_op(node, ops.LINEAR) and len(weight_shape) == 2:
        return Product(transposed=False)
    if ops.is_op(node, ops.ADDMM | ops.MM | ops.MATMUL) and len(weight_shape) == 2:
        return Product(transposed=True)
    if ops.is_op(node, ops.CONV | ops.CONV_GENERIC):
        return _convolution(node, weight_shape[2:])
    return None


def _convolution(node: Node, size: tuple[int, ...]) -> MatrixForm:
    dims = len(size)

    def read(name: str) -> tuple[int, ...]:
        return _each(ops.argument(node, name), dims)

    stride, dilation, groups = read("stride"), read("dilation"), ops.argument(node, "groups")
    generic = ops.is_op(node, ops.CONV_GENERIC) and ops.argument(node, "transposed")
    spans = [d * (k - 1) for d, k in zip(dilation, size, strict=True)]
    if not generic and not ops.is_op(node, ops.CONV_TRANSPOSE):
        before, after = _padding(ops.argument(node, "padding"), spans)
        return Convolution(Patches(size, stride, before, after, dilation, groups))
    padding, more = read("padding"), read("output_padding")
    before = tuple(span - p for span, p in zip(spans, padding, strict=True))
    after = tuple(b + m for b, m in zip(before, more, strict=True))
    return TransposedConvolution(
        Patches(size, (1,) * dims, before, after, dilation, groups), stride
    )


def _each(value: Any, dims: int) -> tuple[int, ...]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    return tuple(values * dims if len(values) == 1 else values)


def _padding(value: Any, spans: list[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if value == "valid":
        value = 0
    if value == "same":
        return tuple(s // 2 for s in spans), tuple(s - s // 2 for s in spans)
    padding = _each(value, len(spans))
    return padding, padding
