"""Store stacks of matrices by their rows, so that every row of every matrix can have a scale.

The experts of a mixture are one constant of three dimensions. Quantize and dequantize know channels
along one axis; with the rows of all matrices along it, each has a scale or scales of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from pt2q.ir import ops
from pt2q.ir.constants import Constants
from pt2q.ir.emit import Emitter
from pt2q.ir.experts import stack_of
from pt2q.ir.graph import get_constant, is_parameter, is_persistent

PASS_NAME = "pt2q.rows_of_stacks"


@dataclass(frozen=True)
class StoreStacksByRows:
    """Replace constants ``[matrices, rows, columns]`` by ``[matrices * rows, columns]`` and a view.

    Stacks that are stored the other way, ``[matrices, columns, rows]``, are turned. One that
    products read both ways stays. Not for training: the constant is another than the model's.
    """

    def __call__(self, model: GraphModule) -> bool:
        """Rewrite in place; returns whether anything was."""
        axes = _axes(model)
        if not axes:
            return False
        known = Constants(model)
        emit = Emitter(model, PASS_NAME)
        found = [n for n, several in axes.items() if len(several) == 1 and known.is_constant(n)]
        stored: dict[str, str] = {}
        for node in found:
            _by_rows(emit, node, min(axes[node]), stored)
        return bool(found)


def _axes(model: GraphModule) -> dict[Node, set[int]]:
    """Along which axes products read each stack."""
    axes: dict[Node, set[int]] = {}
    for node in model.graph.nodes:
        stack = stack_of(node)
        if stack is not None and not stack.by_rows:
            axes.setdefault(stack.constant, set()).add(stack.axis)
    return axes


def _by_rows(emit: Emitter, node: Node, axis: int, stored: dict[str, str]) -> None:
    value = get_constant(emit.model, node)
    turned = value.detach() if axis == 2 else value.detach().transpose(1, 2)
    emit.after(node)
    name = f"{node.target}_{axis}"
    if name not in stored:
        stored[name] = _store(emit, str(node.target), turned)
    whole = emit.call(ops.aten.view.default, emit.read(stored[name]), list(turned.shape))
    if axis == 1:
        whole = emit.call(ops.aten.transpose.int, whole, 1, 2)
    node.replace_all_uses_with(whole)


def _store(emit: Emitter, target: str, turned: Tensor) -> str:
    """All rows, under a name of their own; without a copy where they lie so already."""
    rows = turned.reshape(-1, turned.shape[-1])
    persistent = is_persistent(emit.model, target)
    if is_parameter(emit.model, target):
        return emit.keep(f"{target}_rows", nn.Parameter(rows), persistent=persistent)
    return emit.keep(f"{target}_rows", rows, persistent=persistent)
