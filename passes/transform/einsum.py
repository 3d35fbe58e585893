"""Write Einstein sums of two tensors as the linear layers and matrix products that they are.

Quantizers know products by their operators; a sum by an equation is none of them. With one factor a
constant of the model, it is a linear layer whose weight is that constant with its axes turned.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from torch.fx import GraphModule, Node

from pt2q.ir import ops
from pt2q.ir.constants import Constants
from pt2q.ir.emit import Emitter, has_fake_values
from pt2q.ir.graph import is_float_tensor, value_of

PASS_NAME = "pt2q.decompose_einsum"


@dataclass(frozen=True)
class Equation:
    """An equation of two operands, its letters in the four roles that a matrix product has.

    Args:
        left, right, result: the letters of each tensor, one for an axis.
    """

    left: str
    right: str
    result: str

    @property
    def batch(self) -> str:
        """Of both operands and of the result."""
        return "".join(a for a in self.result if a in self.left and a in self.right)

    @property
    def summed(self) -> str:
        """Of both operands and not of the result."""
        return "".join(a for a in self.left if a in self.right and a not in self.result)

    @property
    def rows(self) -> str:
        """Of the left operand and the result alone."""
        return "".join(a for a in self.left if a in self.result and a not in self.right)

    @property
    def columns(self) -> str:
        """Of the right operand and the result alone."""
        return "".join(a for a in self.right if a in self.result and a not in self.left)

    @property
    def is_product(self) -> bool:
        """Whether it is a matrix product: no axis twice, none summed in one operand alone."""
        parts = (self.left, self.right, self.result)
        plain = all(a.isalpha() for part in parts for a in part)
        single = all(len(set(part)) == len(part) for part in parts)
        letters = self.batch + self.summed + self.rows + self.columns
        return plain and single and bool(self.summed) and set("".join(parts)) == set(letters)

    def turned(self) -> Equation:
        """The same with its operands exchanged."""
        return Equation(self.right, self.left, self.result)


@dataclass(frozen=True)
class DecomposeEinsum:
    """Replace every ``einsum`` that is a matrix product: by a linear layer, or by ``matmul``.

    Equations with an axis that stands twice, that is summed in one operand alone, or that has size
    1 in one of them only, stay; so do those of other than two tensors.

    Args:
        keep: operators that stay as they are.
    """

    keep: frozenset[ops.Target] = frozenset()

    def __call__(self, model: GraphModule) -> bool:
        """Replace; returns whether there was any."""
        found = [n for n in model.graph.nodes if ops.is_op(n, ops.EINSUM - self.keep)]
        if not found:
            return False
        constants = Constants(model)
        return any([_replace(model, node, constants) for node in found])


def _replace(model: GraphModule, node: Node, constants: Constants) -> bool:
    tensors = ops.argument(node, "tensors")
    if len(tensors) != 2 or not has_fake_values(node) or not is_float_tensor(node):
        return False
    equation = _read(ops.argument(node, "equation"), *(value_of(t).dim() for t in tensors))
    if equation is None or not _fits(equation, *tensors):
        return False
    left, right = tensors
    if constants.is_constant(left) and not constants.is_constant(right):
        left, right, equation = right, left, equation.turned()
    emit = Emitter(model, PASS_NAME).before(node)
    write = _as_linear if constants.is_constant(right) and not equation.batch else _as_matmul
    emit.replace_by(write(emit, equation, left, right))
    return True


def _read(text: str, left_rank: int, right_rank: int) -> Equation | None:
    """An equation with letters in place of dots; None if it is no matrix product."""
    operands, arrow, result = text.replace(" ", "").partition("->")
    left, comma, right = operands.partition(",")
    if not comma:
        return None
    if not arrow:
        once = sorted(a for a in set(left + right) - {"."} if (left + right).count(a) == 1)
        result = ("..." if "..." in operands else "") + "".join(once)
    dots = [max(0, rank - len(part) + 3) for part, rank in ((left, left_rank), (right, right_rank))]
    free = [chr(0x3B1 + i) for i in range(max(dots))]  # Greek, which equations do not use
    lengths = [n if "..." in part else 0 for part, n in zip((left, right), dots, strict=True)]
    written = [
        part.replace("...", "".join(free[len(free) - n :]))
        for part, n in zip((left, right, result), (*lengths, max(lengths)), strict=True)
    ]
    equation = Equation(*written)
    ranks_fit = (len(equation.left), len(equation.right)) == (left_rank, right_rank)
    return equation if ranks_fit and equation.is_product else None


def _fits(equation: Equation, left: Node, right: Node) -> bool:
    """Whether common axes are as long in both, and at most one of those joined is symbolic."""
    here, there = _sizes(equation.left, left), _sizes(equation.right, right)
    if any(here[a] != there[a] for a in equation.batch + equation.summed):
        return False
    sizes = {**here, **there}
    joined = [part for part in (equation.summed, equation.rows, equation.columns) if len(part) > 1]
    return sum(not isinstance(sizes[a], int) for part in joined for a in part) <= 1


def _sizes(letters: str, node: Node) -> dict[str, Any]:
    return dict(zip(letters, value_of(node).shape, strict=True))


def _as_linear(emit: Emitter, equation: Equation, x: Node, weight: Node) -> Node:
    """``linear(x, weight)``: rows and columns keep their axes, those summed are joined."""
    sizes = _axes(emit, equation, x, weight)
    x = _turned(emit, x, equation.left, equation.rows + equation.summed)
    x = _reshaped(emit, x, [*(sizes[a] for a in equation.rows), _joined(sizes, equation.summed)])
    weight = _turned(emit, weight, equation.right, equation.columns + equation.summed)
    width = [_joined(sizes, equation.columns), _joined(sizes, equation.summed)]
    found = emit.call(ops.aten.linear.default, x, _reshaped(emit, weight, width))
    return _result(emit, equation, found, equation.rows + equation.columns, sizes)


def _as_matmul(emit: Emitter, equation: Equation, left: Node, right: Node) -> Node:
    sizes = _axes(emit, equation, left, right)
    batch = [sizes[a] for a in equation.batch]
    rows, inner, columns = (
        _joined(sizes, part) for part in (equation.rows, equation.summed, equation.columns)
    )
    left = _turned(emit, left, equation.left, equation.batch + equation.rows + equation.summed)
    order = equation.batch + equation.summed + equation.columns
    right = _turned(emit, right, equation.right, order)
    left = _reshaped(emit, left, [*batch, rows, inner])
    right = _reshaped(emit, right, [*batch, inner, columns])
    found = emit.call(ops.aten.matmul.default, left, right)
    return _result(emit, equation, found, equation.batch + equation.rows + equation.columns, sizes)


def _result(
    emit: Emitter, equation: Equation, found: Node, letters: str, sizes: dict[str, Any]
) -> Node:
    """The product with all its axes, in the order of the equation."""
    apart = _reshaped(emit, found, [sizes[a] for a in letters])
    return _turned(emit, apart, letters, equation.result)


def _axes(emit: Emitter, equation: Equation, left: Node, right: Node) -> dict[str, Any]:
    """The size of each axis: a number, or a node that asks for it."""
    pairs = [(a, left, i) for i, a in enumerate(equation.left)]
    pairs += [(a, right, i) for i, a in enumerate(equation.right) if a not in equation.left]
    return {a: emit.size(node, i) for a, node, i in pairs}


def _joined(sizes: dict[str, Any], letters: str) -> Any:
    """The size of several axes as one; -1 where one of them is not a number."""
    if len(letters) == 1:
        return sizes[letters]
    known = [sizes[a] for a in letters]
    return prod(known) if all(isinstance(n, int) for n in known) else -1


def _turned(emit: Emitter, node: Node, found: str, wanted: str) -> Node:
    if found == wanted:
        return node
    return emit.call(ops.aten.permute.default, node, [found.index(a) for a in wanted])


def _reshaped(emit: Emitter, node: Node, sizes: list[Any]) -> Node:
    if len(sizes) == value_of(node).dim():
        return node
    return emit.call(ops.aten.reshape.default, node, sizes)
