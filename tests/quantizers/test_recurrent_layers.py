"""Recurrent layers without a given state: gates are no residual streams, and the programs run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pt2q import QuantGraphModule, convert_pt2e, prepare_pt2e, sqnr
from pt2q.quantizers import XNNPACKQuantizer

pytestmark = pytest.mark.usefixtures("no_gradients")
X = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = kind(4, 8, batch_first=True), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.layer(x)[0])
        return found


def quantized(model: nn.Module, quantizer: XNNPACKQuantizer) -> QuantGraphModule:
    prepared = prepare_pt2e(torch.export.export(model, (X,)), quantizer)
    prepared(X)
    return convert_pt2e(prepared)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.RNN, nn.GRU])
def test_the_sum_before_a_gate_is_no_residual_stream(kind: type[nn.RNNBase]) -> None:
    quantizer, model = XNNPACKQuantizer(), Recurrent(kind).eval()
    assert sqnr(model(X), quantized(model, quantizer)(X)) > 30
    linears = [row for row in quantizer.report().rows if "linear" in row.operator]
    assert len(linears) > 3
    if kind is not nn.GRU:
        assert all("static" in row.how for row in linears)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [nn.LSTM, nn.RNN])
def test_the_programs_run(kind: type[nn.RNNBase]) -> None:
    executorch = pytest.importorskip("pt2q.deploy.executorch")
    model = Recurrent(kind).eval()
    module = quantized(model, XNNPACKQuantizer())
    (found,) = executorch.lower(module, (X,)).load()(X)
    assert sqnr(model(X), found) > 30
