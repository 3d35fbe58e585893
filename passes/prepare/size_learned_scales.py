"""Give learned scales their shape before an optimizer is made."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import Node

from pt2q.ir.graph import inputs_of, value_of
from pt2q.ir.module import QuantGraphModule
from pt2q.observers import LearnableFakeQuantize


@dataclass(frozen=True)
class SizeLearnedScales:
    """Parameters for every `LearnableFakeQuantize` of a prepared module, one per scale.

    How many there are is known from the graph alone.
    """

    def __call__(self, model: QuantGraphModule) -> bool:
        """Set the sizes; the graph is never modified."""
        for node in model.graph.nodes:
            if node.op != "call_module":
                continue
            module = model.get_submodule(str(node.target))
            if isinstance(module, LearnableFakeQuantize):
                module.set_channels(_channels(node, module.ch_axis))
        return False


def _channels(node: Node, axis: int | None) -> int:
    value = value_of(inputs_of(node)[0])
    assert isinstance(value, torch.Tensor)
    return 1 if axis is None else int(value.shape[axis])
