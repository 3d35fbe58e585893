"""A digest of a prepared model, to know it by when a run goes on."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from pt2q.ir.graph import is_observer
from pt2q.ir.module import QuantGraphModule


def digest_of(model: QuantGraphModule) -> str:
    """Of weights, and of what observers of activations have seen.

    Args:
        model: prepared.
    """
    found = hashlib.sha256()
    weights = {
        f"{name}."
        for name, module in model.named_modules()
        if is_observer(module) and getattr(module, "constant_input", False)
    }
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor) or name.startswith(tuple(weights)):
            continue
        flat = value.detach().cpu().contiguous().reshape(-1)
        found.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        found.update(flat.view(torch.uint8).numpy().data)
    return found.hexdigest()
