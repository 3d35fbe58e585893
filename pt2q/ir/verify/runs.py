"""Laws that running shows: values are what is recorded, a converted model exports again."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from pt2q.ir.record import Stage, stage_of
from pt2q.ir.storage import copies, has_storage
from pt2q.ir.torch_private import pytree
from pt2q.ir.verify.laws import Found, law


class _Compare(Interpreter):
    """Runs a graph and compares each value with what is recorded for it."""

    def __init__(self, model: GraphModule) -> None:
        super().__init__(model)
        self.found: list[tuple[str, str]] = []

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if n.op != "output" and n.meta.get("val") is not None:
            recorded, real = pytree.tree_leaves(n.meta["val"]), pytree.tree_leaves(result)
            for one, other in zip(recorded, real, strict=False):
                if isinstance(one, Tensor) and isinstance(other, Tensor):
                    self._compare(n, one, other)
        return result

    def _compare(self, node: Node, recorded: Tensor, real: Tensor) -> None:
        known = len(recorded.shape) == len(real.shape) and all(
            not isinstance(a, int) or a == b
            for a, b in zip(recorded.shape, real.shape, strict=True)
        )
        if recorded.dtype == real.dtype and known:
            return
        text = f"is recorded as {recorded.dtype} {tuple(recorded.shape)}, "
        self.found.append((node.name, text + f"it is {real.dtype} {tuple(real.shape)}"))


@law("values", needs_inputs=True)
def values(model: GraphModule, inputs: tuple[Any, ...]) -> Found:
    """What is recorded of each value is what it is: its dtype and sizes."""
    runner = _Compare(_twin(model))
    try:
        with torch.no_grad():
            runner.run(*_twin(inputs))
    except Exception as error:
        yield "graph", f"does not run on the example inputs: {error}"
    yield from runner.found


@law("exportable", needs_inputs=True)
def exportable(model: GraphModule, inputs: tuple[Any, ...]) -> Found:
    """A converted model can be exported again."""
    if stage_of(model) in (Stage.PREPARED, Stage.PREPARED_QAT):
        return
    try:
        torch.export.export(_twin(model), _twin(inputs))
    except Exception as error:
        yield "graph", f"cannot be exported again: {error}"


Copied = TypeVar("Copied")


def _twin(of: Copied) -> Copied:
    """A deep copy of a model or of inputs, also where torch cannot make one of a tensor.

    Subclasses and layouts without a storage are cloned.
    """
    if isinstance(of, nn.Module):
        held: list[Any] = [*of.parameters(), *of.buffers()]
    else:
        held = [leaf for leaf in pytree.tree_leaves(of) if isinstance(leaf, Tensor)]
    special = {str(id(t)): t for t in held if not has_storage(t)}
    memo: dict[int, Any] = {int(key): made for key, made in copies(special).items()}
    return copy.deepcopy(of, memo)
