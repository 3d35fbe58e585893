"""From training to a runtime: converted models export again and are delegated as a whole."""

from __future__ import annotations

import pytest
import torch
from support.nodes import count
from support.qat_quantizer import QATQuantizer, prepare
from torch import nn

import pt2q
from pt2q.observers import GroupFakeQuantize
from pt2q.quantizers import XNNPACKQuantizer, get_symmetric_quantization_config
from pt2q.spec import QuantizationSpec


def xnnpack() -> XNNPACKQuantizer:
    config = get_symmetric_quantization_config(is_per_channel=True, is_qat=True)
    return XNNPACKQuantizer().set_global(config)


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.BatchNorm2d(8),
        nn.ReLU6(),
        nn.Flatten(),
        nn.Linear(288, 12),
        nn.BatchNorm1d(12),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(12, 4),
    )


def trained(fast: bool = False):
    prepared = prepare(network(), torch.randn(4, 3, 8, 8), quantizer=xnnpack(), fast=fast)
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        prepared(torch.randn(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()
    return prepared.eval().apply(pt2q.disable_observer)


@pytest.mark.parametrize("fast", [False, True])
def test_converted_models_are_exported_again(fast: bool) -> None:
    prepared = trained(fast)
    converted = pt2q.convert_pt2e(prepared)
    assert count(converted, "batch_norm", "add_.Tensor", "pt2q.") == 0
    x = torch.randn(4, 3, 8, 8)
    assert pt2q.sqnr(prepared(x), converted(x)) > 40
    again = torch.export.export(converted, (x,)).module()
    assert torch.equal(again(x), converted(x))
    kept = sum(t.numel() * t.element_size() for t in converted.state_dict().values())
    floats = sum(t.numel() * t.element_size() for t in prepared.parameters())
    assert kept < floats / 2


def test_everything_is_delegated() -> None:
    executorch = pytest.importorskip("pt2q.deploy.executorch")
    pytest.importorskip("executorch")
    x = torch.randn(4, 3, 8, 8)
    lowered = executorch.lower(pt2q.convert_pt2e(trained()), (x,))
    assert not lowered.delegation.portable, lowered.delegation


def test_weights_in_groups_convert_to_group_operators() -> None:
    spec = QuantizationSpec(
        torch.int8,
        GroupFakeQuantize.with_args(group_size=8, scale_dtype=torch.bfloat16),
        -8,
        7,
        torch.per_channel_symmetric,
        ch_axis=0,
    )
    model = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))
    x = torch.randn(5, 32)
    prepared = prepare(model, x, quantizer=QATQuantizer(weight=spec))
    prepared(x).square().sum().backward()
    assert all(p.grad is not None for p in prepared.parameters())
    converted = pt2q.convert_pt2e(prepared.eval().apply(pt2q.disable_observer))
    assert count(converted, "dequantize_per_channel_group") == 2
    assert pt2q.sqnr(prepared(x), converted(x)) > 40
