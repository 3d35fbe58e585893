"""Loading state whose tensors have other shapes than those there are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


def make_room(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, names: Iterable[str] = ()
) -> None:
    """Give buffers of ``module`` the shapes of those about to be loaded.

    Args:
        module: whose ``_load_from_state_dict`` calls this first.
        state_dict: what is loaded.
        prefix: of the module's names in it.
        names: which buffers; all if there are none.
    """
    for name in names or list(module._buffers):
        saved, own = state_dict.get(prefix + name), module._buffers.get(name)
        if saved is not None and own is not None:
            module._buffers[name] = torch.empty(saved.shape, dtype=own.dtype, device=own.device)
