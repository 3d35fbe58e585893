"""The tensors of a layer with its batch norm folded in.

With ``s = gamma / sqrt(running_var + eps)``::

    batch_norm(conv(x, w) + b) = conv(x, w * s) + (b - running_mean) * s + beta

for every output channel (Jacob et al. 2018, section 3.2, equation 14).
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from pt2q.ir.batch_norm import (
    BatchNorm,
    Layer,
)
from pt2q.ir.graph import (
    beside,
    get_constant,
)
from pt2q.ir.storage.own_pages import empty_in_own_pages


def factor_and_shift(
    model: GraphModule, bn: BatchNorm, bias: Node | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """``s`` and the new bias, in float64: rounded once, when they are stored.

    Args:
        model: the module that owns the constants.
        bn: the batch norm.
        bias: the layer's own bias.
    """
    assert bn.running_mean is not None and bn.running_var is not None
    mean = get_constant(model, bn.running_mean).double()
    factor = torch.rsqrt(get_constant(model, bn.running_var).double() + bn.eps)
    if bn.weight is not None:
        factor = factor * get_constant(model, bn.weight).double()
    own = get_constant(model, bias).double() if bias is not None else 0.0
    shift = (own - mean) * factor
    if bn.bias is not None:
        shift = shift + get_constant(model, bn.bias).double()
    return factor, shift


def folded_weight(layer: Layer, factor: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``w * s`` in the dtype of ``w``.

    Args:
        layer: says along which dimension.
        factor: ``s``, [output channels].
        weight: ``w``.
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    # It lives as long as the prepared model: a program that keeps what is converted shrinks then.
    plain = weight.device.type == "cpu" and weight.dtype == wide and weight.is_contiguous()
    out = empty_in_own_pages(weight.shape, wide) if plain else None
    return layer.per_channel(factor.to(wide), weight, out).to(weight.dtype)


def folded_name(weight: Node, old: Node | None, kind: str) -> str:
    """What a folded tensor is called: as the old one, or beside the weight.

    Args:
        weight: the constant of the layer's weight.
        old: the constant that the new one replaces, or None.
        kind: "weight" or "bias".
    """
    if old is not None:
        return str(old.target)
    return beside(str(weight.target), kind)


def all_finite(value: torch.Tensor) -> bool:
    """Whether no element is infinite or NaN, by the extremes: a tenth of the cost of a mask."""
    return value.numel() == 0 or bool(torch.isfinite(torch.stack(torch.aminmax(value))).all())
