"""Biases under the quantizers that ExecuTorch ships: as in the stack that they were written for."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from pt2q import convert_pt2e, prepare_pt2e, sqnr
from pt2q.ir import ops
from pt2q.ir.qparams import read_qparams

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("no_gradients"),
    pytest.mark.filterwarnings("ignore"),
]

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CALIBRATION, HELD_OUT = 4, 6
FLOAT, PER_TENSOR, PER_CHANNEL, NONE = "float", "int32", "int32 per channel", "none"
# Of convolutions with a folded batch norm and without, linear layers with a bias and without one.
BIASES: dict[str, tuple[str, str, str, str]] = {
    "Arm TOSA int8": (PER_CHANNEL, PER_CHANNEL, PER_CHANNEL, NONE),
    "Arm TOSA int8, per tensor": (PER_TENSOR, PER_TENSOR, PER_TENSOR, NONE),
    "Cadence default": (PER_TENSOR, PER_TENSOR, PER_TENSOR, NONE),
    "Cortex-M": (FLOAT, FLOAT, PER_TENSOR, NONE),
    "Example": (FLOAT, FLOAT, FLOAT, NONE),
    "Qualcomm 8a8w": (PER_TENSOR, PER_TENSOR, PER_TENSOR, NONE),
    "Qualcomm 8a8w per channel": (PER_CHANNEL, PER_CHANNEL, PER_TENSOR, NONE),
    "Samsung A8W8": (FLOAT, FLOAT, FLOAT, NONE),
    "Vulkan int8 weights": (FLOAT, FLOAT, FLOAT, NONE),
    "XNNPACK static": (FLOAT, FLOAT, FLOAT, NONE),
    "XNNPACK dynamic": (FLOAT, FLOAT, FLOAT, NONE),
}


class Net(nn.Module):
    """Biases decide what comes out: each layer has one that is large, or none."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU())
        self.hidden, self.head = nn.Linear(32, 16), nn.Linear(16, 4, bias=False)
        for layer in (self.first[0], self.second[0], self.hidden):
            nn.init.normal_(layer.bias, std=0.5)
        nn.init.normal_(self.first[1].running_mean, std=0.3)
        nn.init.uniform_(self.first[1].running_var, 0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.adaptive_avg_pool2d(self.second(self.first(x)), 2).flatten(1)
        return self.head(torch.relu(self.hidden(x)))


class Found(NamedTuple):
    biases: tuple[str, ...]
    decibels: float


def kind_of(call: Any) -> str:
    bias = ops.argument(call, "self" if ops.is_op(call, ops.ADDMM) else "bias")
    if bias is None:
        return NONE
    if not ops.is_op(bias, ops.DEQUANTIZE):
        return FLOAT
    params = read_qparams(bias)
    assert params.dtype is torch.int32
    return PER_TENSOR if params.axis is None else PER_CHANNEL


def found(case: Any, prepare: Callable[..., Any], convert: Callable[..., Any]) -> Found:
    net = Net().eval()
    quantizer = case.make(import_module(f"executorch.backends.{case.module}"))
    seeded = torch.Generator().manual_seed(1)
    batches = [(torch.randn(4, 3, 8, 8, generator=seeded),) for _ in range(CALIBRATION + HELD_OUT)]
    prepared = prepare(case.export(net, batches[0], quantizer), quantizer)
    for batch in batches[:CALIBRATION]:
        prepared(*batch)
    model = convert(prepared)
    held_out = batches[CALIBRATION:]
    wanted, given = (torch.cat([m(*batch) for batch in held_out]) for m in (net, model))
    products = ops.CONV | ops.CONV_GENERIC | ops.LINEAR | ops.ADDMM
    biases = [kind_of(n) for n in model.graph.nodes if ops.is_op(n, products)]
    return Found(tuple(biases), float(sqnr(wanted, given)))


@pytest.fixture
def cases(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(BENCHMARKS)
    from other_quantizers import fetch_nothing
    from shipped_quantizers import CASES

    fetch_nothing()
    return {case.name: case for case in CASES}


@pytest.mark.parametrize("name", BIASES)
def test_biases_are_stored_as_their_own_stack_does(name: str, cases: dict[str, Any]) -> None:
    from torchao.quantization.pt2e import quantize_pt2e as peer

    ours = found(cases[name], prepare_pt2e, convert_pt2e)
    theirs = found(cases[name], peer.prepare_pt2e, peer.convert_pt2e)
    assert ours.biases == theirs.biases == BIASES[name]
    assert ours.decibels > theirs.decibels - 1.5
