"""A small network quantized for Inductor."""

from __future__ import annotations

import torch
from torch import nn

from pt2q import convert_pt2e
from pt2q.quantizers import X86InductorQuantizer
from support.flow import calibrated


class Net(nn.Module):
    """Layers to choose from; `function` says how they are joined."""

    def __init__(self, function) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 1)
        self.conv1d = nn.Conv1d(8, 8, 3)
        self.up = nn.ConvTranspose2d(8, 8, 2, 2)
        self.linear = nn.Linear(32, 32)
        self.linear2 = nn.Linear(32, 32)
        self.position = nn.Parameter(torch.randn(4, 32))
        self.function = function

    def forward(self, *args):
        return self.function(self, *args)


def converted(function, inputs, quantizer=None):
    model = function if isinstance(function, nn.Module) else Net(function)
    model = model.eval()
    program = torch.export.export(model, inputs)
    ready = calibrated(program, quantizer or X86InductorQuantizer(), inputs)
    return model, convert_pt2e(ready)
