"""Why products that no row of a table takes stay in float: by where their factors come from."""

from __future__ import annotations

from collections.abc import Callable

from torch.fx import Node

from pt2q.ir.constants import ancestors
from pt2q.ir.ops import argument, has_argument, tensor_arguments
from pt2q.quantizers.toolkit.reasons import Reason


def of_product(
    constant: Reason, computed: Reason, scaled: Reason | None = None
) -> Callable[[Node], Reason]:
    """Why a product of two factors stays in float.

    Args:
        constant: where a factor is computed from constants alone.
        computed: where both depend on inputs of the model.
        scaled: where both do and an alpha or beta scales it; None takes ``computed``.
    """

    def why(node: Node) -> Reason:
        if multiplies_constant(node):
            return constant
        return computed if scaled is None or is_unscaled(node) else scaled

    return why


def multiplies_constant(node: Node) -> bool:
    """Whether a factor of a product depends on no input of the model.

    Args:
        node: a product; its last two tensors are its factors.
    """
    factors = [source for _, source in tensor_arguments(node)][-2:]
    return any(all(n.op != "placeholder" for n in ancestors(factor)) for factor in factors)


def is_unscaled(node: Node) -> bool:
    """Whether a product has no alpha and beta other than 1."""
    return all(argument(node, n) == 1 for n in ("alpha", "beta") if has_argument(node, n))
