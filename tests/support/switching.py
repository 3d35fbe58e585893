"""Modules exported in a mode, run with a seed."""

from __future__ import annotations

import torch
from torch import nn
from torch.fx import GraphModule

from support.seeds import seeded


def exported(model: nn.Module, *inputs: torch.Tensor, train: bool = False) -> GraphModule:
    return torch.export.export(model.train(train), inputs).module(check_guards=False)


def run_seeded(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with seeded(3):
        return model(x)


def assert_same_state(model: nn.Module, reference: nn.Module) -> None:
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, msg=name)
