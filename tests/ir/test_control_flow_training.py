"""Bodies of control flow are trained."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support.control_flow_models import (
    MODELS,
    inputs,
    model_of,
)
from torch import nn

from pt2q import (
    convert_pt2e,
    disable_observer,
    prepare_qat_pt2e,
    verify,
)
from pt2q.ir.control_flow import graph_modules
from pt2q.quantizers import XNNPACKQuantizer, get_symmetric_quantization_config


def train(model: nn.Module, steps: int) -> list[float]:
    """Losses of some steps towards a fixed target."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    targets = [torch.sigmoid(x.cumsum(0)) for x in inputs()]
    losses = []
    for _ in range(steps):
        total = torch.tensor(0.0)
        optimizer.zero_grad()
        for x, target in zip(inputs(), targets, strict=True):
            found = model(x)
            rows = min(len(found), len(target))
            columns = found.shape[-1]
            total = total + (found[:rows] - target[:rows, :columns]).square().mean()
        total.backward()
        optimizer.step()
        losses.append(float(total.detach()))
    return losses


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("kind", MODELS)
def test_bodies_are_trained(kind: type[nn.Module], fast: bool) -> None:
    quantizer = XNNPACKQuantizer().set_global(
        get_symmetric_quantization_config(is_per_channel=True, is_qat=True)
    )
    program = torch.export.export(copy.deepcopy(model_of(kind)[0]).train(), (inputs()[0],))
    prepared = prepare_qat_pt2e(program, quantizer, fast=fast)
    before = {n: p.detach().clone() for n, p in prepared.named_parameters()}
    losses = train(prepared.train(), 8)
    assert losses[-1] < 0.9 * losses[0]
    assert not any(torch.equal(p, before[n]) for n, p in prepared.named_parameters())
    prepared.eval()
    prepared.apply(disable_observer)
    converted = convert_pt2e(prepared)
    with torch.no_grad():
        for x in inputs():
            torch.testing.assert_close(converted(x), prepared(x), rtol=0, atol=1e-6)
    again = torch.export.export(converted, (inputs()[0],)).module()
    torch.testing.assert_close(again(inputs()[1]), converted(inputs()[1]), rtol=0, atol=0)
    assert any("dequantize" in name for name in [str(n.target) for n in body_calls(converted)])
    verify(converted, (inputs()[0],)).raise_if_broken()


def body_calls(model: Any) -> list[Any]:
    """The calls inside bodies of control flow."""
    bodies = [module for module in graph_modules(model) if module is not model]
    return [n for body in bodies for n in body.graph.nodes if n.op == "call_function"]
