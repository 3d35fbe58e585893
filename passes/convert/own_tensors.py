"""Give a module tensors of its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pt2q.ir.module import QuantGraphModule


@dataclass(frozen=True)
class OwnTensors:
    """Clone every parameter and buffer; those that were one tensor are one tensor again.

    A model converted in the middle of training must not move when training goes on. What is
    quantized was copied already, so little is left to clone.
    """

    def __call__(self, model: QuantGraphModule) -> bool:
        """Clone; the graph is never modified."""
        copies: dict[int, torch.Tensor] = {}
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    new = copies.setdefault(id(parameter), _clone(parameter))
                    module._parameters[name] = new  # type: ignore[assignment]
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = copies.setdefault(id(buffer), _clone(buffer))
        return False


def _clone(tensor: torch.Tensor) -> torch.Tensor:
    value = tensor.detach().clone()
    if not isinstance(tensor, torch.nn.Parameter):
        return value
    return torch.nn.Parameter(value, requires_grad=tensor.requires_grad)
