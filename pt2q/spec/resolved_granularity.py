"""The one resolved form of what specs and observers say about granularity."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from pt2q.ir.dtypes import is_per_channel
from pt2q.spec.constructor import unwrapped
from pt2q.spec.granularity import (
    Granularity,
    PerAxis,
    PerBlock,
    PerGroup,
    PerRow,
    PerTensor,
    PerToken,
)

_KINDS = {cls.__name__: cls for cls in (PerTensor, PerAxis, PerGroup, PerBlock, PerRow, PerToken)}


def as_granularity(value: Any) -> Granularity | None:
    """Ours for a granularity of any library, told by its name and fields; None for what is none."""
    if isinstance(value, Granularity):
        return value
    ours = _KINDS.get(type(value).__name__)
    names = [field.name for field in fields(ours)] if ours is not None else []
    if ours is None or not all(hasattr(value, name) for name in names):
        return None
    return ours(**{name: getattr(value, name) for name in names})


def granularity_of(described: Any) -> Granularity:
    """How much shares a scale, by a spec, or by an observer or fake quantizer.

    Args:
        described: a spec with ``qscheme``; or an observer: its ``granularity`` counts, else its
            ``group_size``, ``per_token``, ``qscheme`` and ``ch_axis``.
    """
    own = as_granularity(getattr(described, "granularity", None))
    if own is not None:
        return own
    said = {name: getattr(described, name, None) for name in ("qscheme", "ch_axis")}
    constructor = getattr(described, "observer_or_fake_quant_ctr", None)
    if constructor is not None:
        return granularity_made_by(constructor, **said)
    more = {name: getattr(described, name, None) for name in ("group_size", "per_token")}
    return granularity_from(**said, **more)


def simplest(granularity: Granularity, rank: int) -> Granularity:
    """The most common word for a granularity, of a tensor of that many dimensions.

    `PerRow` of a matrix is `PerAxis` of the other dimension, `PerBlock` of a single row `PerGroup`.
    """
    if isinstance(granularity, PerRow) and rank == 2:
        return PerAxis(1 - granularity.dim % 2)
    if isinstance(granularity, PerBlock) and set(granularity.block_size[:-1]) <= {1}:
        return PerGroup(granularity.block_size[-1])
    return granularity


def granularity_made_by(constructor: Any, **said: Any) -> Granularity:
    """The granularity of the observer that a constructor makes.

    Args:
        constructor: as specs have it; its class may say for itself, in a class method
            ``granularity_for`` that is given the arguments.
        **said: arguments that come before those filled in; None counts as not given.
    """
    cls, arguments = unwrapped(constructor)
    arguments = {**arguments, **{k: v for k, v in said.items() if v is not None}}
    own = getattr(cls, "granularity_for", granularity_from)
    found: Granularity = own(**arguments)
    return found


def granularity_from(
    *,
    granularity: Any = None,
    group_size: int | None = None,
    per_token: bool | None = None,
    qscheme: Any = None,
    ch_axis: int | None = None,
    **_: Any,
) -> Granularity:
    """What these arguments of an observer mean together; others are passed over."""
    given = as_granularity(granularity)
    if given is not None:
        return given
    if group_size is not None:
        return PerGroup(group_size)
    if per_token:
        return PerToken()
    return PerAxis(ch_axis or 0) if is_per_channel(qscheme) else PerTensor()
