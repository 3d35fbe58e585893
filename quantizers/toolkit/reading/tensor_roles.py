"""What each tensor is to the operator that reads it: an activation, a weight or a bias."""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

from pt2q.ir.graph import is_constant, is_float_tensor
from pt2q.ir.ops import ADDMM, MATMUL, MM, is_op, tensor_arguments

WEIGHT_NAMES = frozenset({"weight"})
BIAS_NAMES = frozenset({"bias"})
FACTOR_NAMES = frozenset({"mat2", "other"})
PRODUCTS = ADDMM | MM | MATMUL


@dataclass(frozen=True)
class Roles:
    """The tensors an operator reads.

    Args:
        activations: in the order of the arguments, each once.
        weight, bias: the tensors in these roles, or None.
    """

    activations: tuple[Node, ...]
    weight: Node | None = None
    bias: Node | None = None

    @property
    def float_activations(self) -> tuple[Node, ...]:
        """The activations that are single floating point tensors."""
        return tuple(filter(is_float_tensor, self.activations))


def roles_of(node: Node) -> Roles:
    """Read the roles from the operator's schema.

    A matrix product names its operands neutrally; there a constant second factor is the weight
    and the first argument of ``addmm`` the bias.

    Args:
        node: a call of any operator.
    """
    weight = bias = None
    activations: list[Node] = []
    for name, source in tensor_arguments(node):
        if name in WEIGHT_NAMES or _is_constant_factor(node, name, source):
            weight = source
        elif name in BIAS_NAMES or (name == "self" and is_op(node, ADDMM)):
            bias = source
        elif source not in activations:
            activations.append(source)
    return Roles(tuple(activations), weight, bias)


def _is_constant_factor(node: Node, name: str, source: Node) -> bool:
    return name in FACTOR_NAMES and is_op(node, PRODUCTS) and is_constant(source)


def float_activations(node: Node) -> tuple[Node, ...]:
    """The activations of an operator that are single floating point tensors."""
    return roles_of(node).float_activations
