"""Masks, models without data, and selection, where the peer fails."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.flow import quantized
from support.nodes import nodes_of
from support.peer_faults import everything, prepared, xnnpack
from support.small_models import TwoLinears
from support.small_quantizers import (
    DYNAMIC,
    PER_TOKEN,
    FunctionQuantizer,
    SmallQuantizer,
)
from torch import Tensor, nn

from pt2q import (
    QuantGraphModule,
    Quantizer,
    convert_pt2e,
    sqnr,
)
from pt2q.errors import NoDataError
from pt2q.ir import ops
from pt2q.quantizers import XNNPACKQuantizer, get_symmetric_quantization_config

pytestmark = [
    pytest.mark.filterwarnings("ignore::pt2q.errors.NothingQuantizedWarning"),
    pytest.mark.filterwarnings("ignore::pt2q.errors.BatchNormNotFoldedWarning"),
]


class Masked(nn.Module):
    def __init__(self, low: float) -> None:
        super().__init__()
        self.low = low
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        scores = self.linear(x)
        mask = torch.zeros_like(scores).masked_fill(~keep, self.low)
        return torch.softmax(scores + mask, -1)


@pytest.mark.parametrize("low", [float("-inf"), torch.finfo(torch.float32).min])
@pytest.mark.parametrize(
    "quantizer",
    [FunctionQuantizer(everything), SmallQuantizer(), xnnpack()],
    ids=["everything", "small", "xnnpack"],
)
def test_masks_give_finite_scales(low: float, quantizer: Quantizer) -> None:
    x, keep = torch.randn(4, 8), torch.ones(4, 8, dtype=torch.bool)
    keep[:, 6:] = False
    done = quantized(Masked(low).eval(), quantizer, x, keep)  # its laws ask for finite scales
    for node in nodes_of(done, ops.QUANTIZE):
        if isinstance(node.args[1], float):
            assert node.args[1] < 1.0
    assert torch.isfinite(done(x, keep)).all()


def test_xnnpack_leaves_masks_in_float() -> None:
    x, keep = torch.randn(4, 8), torch.ones(4, 8, dtype=torch.bool)
    keep[:, 6:] = False
    model = Masked(float("-inf")).eval()
    done = quantized(model, xnnpack(), x, keep)
    assert sqnr(model(x, keep), done(x, keep)) > 30
    assert (done(x, keep)[:, 6:] == 0).all()


@pytest.mark.parametrize("spec", [DYNAMIC, PER_TOKEN, None])
def test_dynamic_models_need_no_forward(spec: Any) -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8)).eval()
    x = torch.randn(8, 16)
    done = convert_pt2e(prepared(model, SmallQuantizer(spec), x))
    assert sqnr(model(x), done(x)) > 35


@pytest.mark.parametrize("quantizer", [SmallQuantizer(), xnnpack()], ids=["small", "xnnpack"])
def test_static_models_without_data_do_not_convert(quantizer: Quantizer) -> None:
    ready = prepared(nn.Linear(4, 4), quantizer, torch.randn(2, 4))
    with pytest.raises(NoDataError, match=r"input.*set_module_name"):
        convert_pt2e(ready)


def int8_weights(model: QuantGraphModule) -> set[str]:
    return {n for n, b in model.named_buffers() if b.dtype == torch.int8}


def test_a_packet_names_all_its_overloads() -> None:
    config = get_symmetric_quantization_config()
    x = torch.randn(3, 4)
    for given in (torch.ops.aten.linear, torch.ops.aten.linear.default):
        quantizer = XNNPACKQuantizer().set_operator_type(given, config)
        done = quantized(TwoLinears().eval(), quantizer, x)
        assert int8_weights(done) == {"one.weight_quantized", "two.weight_quantized"}
    assert torch.ops.aten.add.Tensor in ops.overloads(torch.ops.aten.add)
    assert torch.ops.aten.add.Scalar in ops.overloads(torch.ops.aten.add)


def test_a_module_can_be_left_out_by_name() -> None:
    quantizer = xnnpack().set_module_name("two", None)
    x = torch.randn(3, 4)
    done = quantized(TwoLinears().eval(), quantizer, x)
    assert int8_weights(done) == {"one.weight_quantized"}
    assert isinstance(done.get_parameter("two.weight"), nn.Parameter)
