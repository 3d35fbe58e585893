"""The activation behind a layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from pt2q.algorithms.layers import Use
from pt2q.ir import ops
from pt2q.ir.graph import is_observer_call

Activation = Callable[[Tensor], Tensor]


def activation_behind(use: Use) -> Activation:
    """The function of one value that alone reads a layer's output, or the identity.

    Args:
        use: the layer's call; observers between are seen through.
    """
    reader = _only_reader(use)
    if reader is None or not ops.is_op(reader, ops.RELU | ops.CLAMP_LIKE | ops.SATURATING):
        return lambda y: y
    if [n for n in reader.all_input_nodes] != [reader.args[0]]:
        return lambda y: y

    def activation(y: Tensor) -> Tensor:
        args, kwargs = map_arg((reader.args, reader.kwargs), lambda node: y)
        target: Any = reader.target
        found: Tensor = target(y.clone(), *args[1:], **kwargs)
        return found

    return activation


def _only_reader(use: Use) -> Node | None:
    """The operator that alone reads a call's output, seen through observers."""
    at = use.node
    while len(at.users) == 1:
        (user,) = at.users
        if not is_observer_call(use.owner, user):
            return user
        at = user
    return None
