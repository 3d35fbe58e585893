"""A sound model, and the laws that a changed one breaks."""

from __future__ import annotations

import torch
from torch import nn

from pt2q import QuantGraphModule, convert_pt2e
from support.flow import calibrated
from support.small_quantizers import SmallQuantizer

X = (torch.linspace(-1, 1, 2 * 3 * 36).reshape(2, 3, 6, 6),)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.other = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.conv(x) + self.other(x)


def prepared(quantizer=None) -> QuantGraphModule:
    return calibrated(torch.export.export(Net().eval(), X), quantizer or SmallQuantizer(), X)


def converted(quantizer=None) -> QuantGraphModule:
    return convert_pt2e(prepared(quantizer))
