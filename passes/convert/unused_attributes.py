"""Let go of what a module holds and no node refers to."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pt2q.ir.module import QuantGraphModule


@dataclass(frozen=True)
class RemoveUnusedAttributes:
    """Drop parameters, buffers and submodules that no node refers to.

    What a state dict or a saved file holds afterwards is what the graph reads.
    """

    def __call__(self, model: QuantGraphModule) -> bool:
        """Drop; the graph itself is not touched."""
        used = {str(n.target) for n in model.graph.nodes if n.op in ("get_attr", "call_module")}
        _prune(model, "", used)
        return False


def _prune(module: torch.nn.Module, prefix: str, used: set[str]) -> bool:
    """Prune below a module; returns whether anything in it is used."""
    for store in (module._parameters, module._buffers):
        for name in [n for n in store if prefix + n not in used]:
            del store[name]
            module._non_persistent_buffers_set.discard(name)
    for name, child in list(module._modules.items()):
        whole = prefix + name in used  # called, or read by a control-flow operator
        if not whole and (child is None or not _prune(child, f"{prefix}{name}.", used)):
            del module._modules[name]
    return bool(module._parameters or module._buffers or module._modules)
