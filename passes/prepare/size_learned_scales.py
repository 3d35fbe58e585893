"""Give learned scales their shape before an optimizer is made."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pt2q.ir.graph import inputs_of, value_of
from pt2q.ir.module import QuantGraphModule
from pt2q.observers import LearnableFakeQuantize


@dataclass(frozen=True)
class SizeLearnedScales:
    """One scale per channel for every per-channel `LearnableFakeQuantize` of a prepared module.

    Its scales are Parameters, and the channels are known from the graph alone.
    """

    def __call__(self, model: QuantGraphModule) -> bool:
        """Set the sizes; the graph is never modified."""
        for node in model.graph.nodes:
            if node.op != "call_module":
                continue
            module = model.get_submodule(str(node.target))
            if isinstance(module, LearnableFakeQuantize) and module.ch_axis is not None:
                value = value_of(inputs_of(node)[0])
                assert isinstance(value, torch.Tensor)
                module.set_channels(int(value.shape[module.ch_axis]))
        return False
