"""How operators are named, and the sets that they are compared through."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from pt2q.ir.torch_private import OpOverload, OpOverloadPacket, quantized_decomposed

assert quantized_decomposed is not None, "importing it registers what `qd` names"

aten = torch.ops.aten
qd = torch.ops.quantized_decomposed

Target = Callable[..., Any]


@lru_cache(maxsize=4096)
def overloads(op: Any) -> frozenset[Target]:
    """All operators meant by ``op``.

    Args:
        op: an overload (itself only), a packet (every overload of it) or any other callable
            (itself only).

    Returns:
        The set to compare node targets with.
    """
    if isinstance(op, OpOverloadPacket):
        return frozenset(getattr(op, name) for name in op.overloads())
    return frozenset({op})


def every(*ops: Any) -> frozenset[Target]:
    """The overloads of several operators.

    Args:
        ops: overloads, packets and other callables; see `overloads`.
    """
    return frozenset().union(*(overloads(op) for op in ops))


def functional_operators(fn: Any) -> frozenset[Target]:
    """The operators a Python function such as ``torch.nn.functional.linear`` is exported as.

    Args:
        fn: a packet, an overload, or a function whose name is that of an ATen operator.

    Returns:
        The overloads, or an empty set if the name is not that of an operator.
    """
    if isinstance(fn, OpOverload | OpOverloadPacket):
        return overloads(fn)
    name = getattr(fn, "__name__", "")
    packets = [getattr(aten, n) for n in (name, f"{name}_") if name and hasattr(aten, n)]
    return every(*packets) if packets else frozenset()


def operator_named(name: str) -> Any:
    """The operator of a name, as graphs print it or shorter.

    Args:
        name: ``aten.add.Tensor`` (that overload), ``aten.add`` or ``add`` (all of them);
            ``aten::add`` as schemas write it.

    Returns:
        An overload or a packet; None if there is no such operator.
    """
    parts = name.replace("::", ".").split(".")
    if len(parts) == 1:
        parts = ["aten", *parts]
    try:
        found = getattr(getattr(torch.ops, parts[0]), parts[1])
        return getattr(found, parts[2]) if len(parts) == 3 else found if len(parts) == 2 else None
    except (AttributeError, RuntimeError):
        return None
