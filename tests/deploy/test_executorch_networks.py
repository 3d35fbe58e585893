"""Whole networks are delegated and right."""

from __future__ import annotations

import pytest
import torch
from support.lowering import quantized
from support.nets import NETS

from pt2q import sqnr
from pt2q.deploy.executorch import Delegation, lower


def test_delegation_prints_in_order() -> None:
    delegation = Delegation(3, 2, (("aten.a", 2), ("aten.b", 1)), ("convolution_1",))
    assert str(delegation) == (
        "3 of 6 operators in 2 XNNPACK blob(s)\n"
        "  portable:    2 x aten.a\n"
        "  portable:    1 x aten.b\n"
        "  quantized but not delegated: convolution_1"
    )


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("mobilenet_v2", 10), ("resnet18", 15)])
def test_whole_network(name: str, least: float) -> None:
    net = NETS[name]
    model = net.build()
    converted = quantized(model, *(net.inputs(1, seed) for seed in range(4)))
    inputs = net.inputs(1, 99)
    program, floating = lower(converted, inputs), lower(model, inputs)
    assert program.delegation.portable == ()
    assert len(floating.buffer) > 3.6 * len(program.buffer)
    # Of random weights a single input says little: one rounding on the other side moves it by 2 dB.
    held_out = [net.inputs(1, seed) for seed in range(99, 107)]
    method = program.load()
    ran = torch.cat([method(*x)[0] for x in held_out])
    with torch.no_grad():
        reference = torch.cat([model(*x) for x in held_out])
        graph = torch.cat([converted(*x) for x in held_out])
    assert sqnr(reference, ran) > sqnr(reference, graph) - 1.0
    assert sqnr(reference, ran) > least
