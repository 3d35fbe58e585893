"""Training with rounding and integer arithmetic, in bfloat16 and float16."""

from __future__ import annotations

import functools

import pytest
import torch
from support.half_precision import HALVES
from support.nodes import nodes_of
from support.qat_quantizer import QATQuantizer
from support.seeds import seeded
from torch import Tensor, nn

from pt2q import QuantGraphModule, convert_pt2e, prepare_pt2e, prepare_qat_pt2e, sqnr
from pt2q.ir import ops
from pt2q.observers import FakeQuantize, GroupFakeQuantize, LearnableFakeQuantize
from pt2q.quantizers import XNNPACKQuantizer
from pt2q.spec import QuantizationSpec

SHAPE = (8, 3, 6, 6)


def fake(kind: type, scheme: torch.qscheme) -> QuantizationSpec:
    return QuantizationSpec(torch.int8, kind, -128, 127, scheme)


QUANTIZERS = {
    "fused": QATQuantizer(),
    "bias": QATQuantizer(bias=True),
    "plain": QATQuantizer(
        activation=fake(FakeQuantize, torch.per_tensor_affine),
        weight=fake(FakeQuantize, torch.per_tensor_symmetric),
    ),
    "learned": QATQuantizer(
        activation=fake(LearnableFakeQuantize, torch.per_tensor_affine),
        weight=fake(LearnableFakeQuantize, torch.per_tensor_symmetric),
    ),
}


def network() -> nn.Sequential:
    with seeded(0):
        return nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)
        )


def batch(seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)).to(dtype)


def trained(name: str, dtype: torch.dtype, fast: bool = False) -> QuantGraphModule:
    """Some steps toward zero outputs, as any loss in half precision is computed: in float32."""
    exported = torch.export.export(network().train().to(dtype), (batch(0, dtype),))
    prepared = prepare_qat_pt2e(exported, QUANTIZERS[name], fast=fast).train()
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.05)
    for seed in range(4):
        optimizer.zero_grad()
        (prepared(batch(seed, dtype)).float() - 0.3).square().mean().backward()
        optimizer.step()
    return prepared.eval()


@functools.cache
def in_float32(name: str) -> Tensor:
    return trained(name, torch.float32)(batch(9, torch.float32)).detach()


@pytest.mark.parametrize(
    ("name", "fast"), [*((name, False) for name in QUANTIZERS), ("fused", True)]
)
@pytest.mark.parametrize("dtype", HALVES)
def test_training_learns_what_it_learns_in_float32(
    name: str, dtype: torch.dtype, fast: bool
) -> None:
    model = trained(name, dtype, fast)
    found = model(batch(9, dtype)).detach()
    assert found.dtype == dtype
    assert all(p.dtype == dtype for n, p in model.named_parameters() if n.startswith(("0.", "4.")))
    assert sqnr(in_float32(name), found.float()) > 12
    converted = convert_pt2e(model)
    assert sqnr(found.float(), converted(batch(9, dtype)).float()) > 25
    observers = [m for m in model.modules() if isinstance(m, FakeQuantize)]
    assert observers
    assert all(m.calculate_qparams()[0].dtype is torch.float32 for m in observers)


def test_weights_in_groups_train_in_bfloat16() -> None:
    with seeded(0):
        model = nn.Sequential(nn.Linear(32, 8), nn.ReLU()).to(torch.bfloat16)
    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(1)).bfloat16()
    groups = QuantizationSpec(
        torch.int8,
        GroupFakeQuantize.with_args(group_size=16),
        -8,
        7,
        torch.per_channel_symmetric,
        ch_axis=0,
    )
    exported = torch.export.export(model, (x,))
    prepared = prepare_qat_pt2e(exported, QATQuantizer(activation=None, weight=groups)).train()
    prepared(x).float().square().mean().backward()
    assert prepared.get_parameter("0.weight").grad.dtype is torch.bfloat16
    found = prepared.eval()(x)
    assert sqnr(found.float(), convert_pt2e(prepared)(x).float()) > 40


@pytest.mark.parametrize("dtype", HALVES)
@torch.no_grad()
def test_integer_arithmetic_borders_on_half_precision(dtype: torch.dtype) -> None:
    """The same operators as in float32, within the rounding of the outputs, in the model's type."""
    found = {}
    for kind in (torch.float32, dtype):
        model = network().eval().to(dtype).to(kind)
        prepared = prepare_pt2e(torch.export.export(model, (batch(0, kind),)), XNNPACKQuantizer())
        for seed in range(4):
            prepared(batch(seed, dtype).to(kind))
        found[kind] = convert_pt2e(prepared, use_reference_representation=True)
    wide, half = found[torch.float32], found[dtype]
    products = ops.CONV | ops.LINEAR
    integers = [n.meta["val"].dtype for n in nodes_of(half, products)]
    assert integers == [n.meta["val"].dtype for n in nodes_of(wide, products)]
    assert not any(kind.is_floating_point for kind in integers)
    assert not nodes_of(half, ops.QUANTIZE | ops.DEQUANTIZE)
    result = half(batch(9, dtype))
    assert result.dtype == dtype
    assert sqnr(wide(batch(9, dtype).float()), result.float()) > 28
