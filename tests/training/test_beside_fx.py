"""Training beside FX's: the same numbers; after conversion too, once FX's scales are put in."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from support.samples import images
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantizeBase as FXFakeQuantize
from torch.ao.quantization import QConfigMapping, qconfig
from torch.ao.quantization.backend_config import get_qnnpack_backend_config
from torch.ao.quantization.quantize_fx import (
    _convert_to_reference_decomposed_fx,
    prepare_qat_fx,
)
from torch.fx import GraphModule

import pt2q
from pt2q import (
    FusedMovingAvgObsFakeQuantize,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    QuantGraphModule,
    SharedQuantizationSpec,
)
from pt2q.observers import FakeQuantizeBase
from pt2q.quantizers import (
    QuantizationConfig,
    XNNPACKQuantizer,
    annotate_input_qspec_map,
    annotate_output_qspec,
    get_symmetric_quantization_config,
)

aten = torch.ops.aten
FX = {
    False: qconfig.default_symmetric_qnnpack_qat_qconfig,
    True: qconfig.default_per_channel_symmetric_qnnpack_qat_qconfig,
}

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


class Conv(nn.Module):
    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class AddInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        z = self.norm(self.conv(y))
        z += y
        return self.relu(z)


class Clamped(nn.Module):
    """The clamp shares the parameters of the batch norm, which fusing replaces."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.clamp = nn.Hardtanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.clamp(self.norm(self.conv(x)))


NETS = {
    "conv": Conv,
    "without bias": lambda: Conv(bias=False),
    "in-place add and relu": AddInPlace,
    "shared": Clamped,
}


class Quantizer(XNNPACKQuantizer):
    """Ours, and a clamp that shares what it reads, as FX has it."""

    def annotate(self, model: GraphModule) -> GraphModule:
        super().annotate(model)
        for node in model.graph.find_nodes(op="call_function", target=aten.hardtanh.default):
            source = node.args[0]
            annotate_output_qspec(source, self.selection.global_config().output_activation)
            annotate_input_qspec_map(node, source, SharedQuantizationSpec(source))
            annotate_output_qspec(node, SharedQuantizationSpec(source))
        return model


def config(per_channel: bool) -> QuantizationConfig:
    """Weights are averaged, as FX averages them; ours follow them exactly."""
    made = get_symmetric_quantization_config(is_per_channel=per_channel, is_qat=True)
    averages = MovingAveragePerChannelMinMaxObserver if per_channel else MovingAverageMinMaxObserver
    averaged = FusedMovingAvgObsFakeQuantize.with_args(observer=averages, eps=2**-12)
    return replace(made, weight=replace(made.weight, observer_or_fake_quant_ctr=averaged))


def prepared(net: nn.Module, per_channel: bool, x: Tensor) -> tuple[QuantGraphModule, GraphModule]:
    """By us and by FX, in training."""
    quantizer = Quantizer().set_global(config(per_channel))
    program = torch.export.export(copy.deepcopy(net).train(), (x,))
    mapping = QConfigMapping().set_global(FX[per_channel])
    theirs = prepare_qat_fx(
        copy.deepcopy(net).train(), mapping, (x,), backend_config=get_qnnpack_backend_config()
    )
    return pt2q.prepare_qat_pt2e(program, quantizer, fast=False), theirs


def put_in_scales(ours: QuantGraphModule, theirs: GraphModule) -> float:
    """Give ours the scales that FX converts with; returns how far the farthest was off."""
    mine = [m for m in ours.modules() if isinstance(m, FakeQuantizeBase)]
    pairs = [
        (mine_now, found.calculate_qparams()[0])
        for found in theirs.modules()
        if isinstance(found, FXFakeQuantize)
        for mine_now in mine
        if torch.equal(mine_now.scale, found.scale)
    ]
    assert {id(m) for m, _ in pairs} == {id(m) for m in mine}
    off = max(float((scale / m.scale - 1).abs().max()) for m, scale in pairs)
    for module, scale in pairs:
        module.scale.copy_(scale)
    return off


@pytest.mark.parametrize("per_channel", [False, True], ids=["per tensor", "per channel"])
@pytest.mark.parametrize("name", NETS)
def test_training_is_that_of_fx_and_so_is_what_its_scales_convert_to(
    name: str, per_channel: bool
) -> None:
    torch.manual_seed(2)
    net = NETS[name]()
    batches = [images(2, 6, seed)[0] * (1 + seed) for seed in range(3)]
    ours, theirs = prepared(net, per_channel, batches[0])
    for x in batches:
        assert torch.equal(ours(x), theirs(x))
    ours.eval(), theirs.eval()
    assert torch.equal(ours(batches[0]), theirs(batches[0]))
    assert 1e-4 < put_in_scales(ours, theirs) < 0.01
    converted = pt2q.convert_pt2e(ours)
    reference = _convert_to_reference_decomposed_fx(
        theirs, backend_config=get_qnnpack_backend_config()
    )
    for x in batches:
        assert torch.equal(converted(x), reference(x))
