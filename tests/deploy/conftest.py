"""A small network to lower."""

from __future__ import annotations

import pytest
from support.convnets import MobileNetV2
from support.lowering import Lowered, quantized
from support.nets import image_net


@pytest.fixture(scope="session")
def small() -> Lowered:
    stages = ((1, 8, 1, 1), (4, 16, 2, 2))
    net = image_net(lambda: MobileNetV2(10, stages, stem=8, head=32), 32)
    model = net.build()
    converted = quantized(model, *(net.inputs(1, seed) for seed in range(24)))
    return Lowered(model, converted, net.inputs(1, 99))
