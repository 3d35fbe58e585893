"""Programs of one model are trained together: one weight, one fake quantizer."""

from __future__ import annotations

import copy

import pytest
import torch
from support.qat_quantizer import QATQuantizer
from support.seeds import seeded
from support.two_programs import generate, small_decoder, two_programs
from torch import Tensor, nn

from pt2q import QuantGraphModule, convert_pt2e, disable_observer, prepare_qat_pt2e, sqnr
from pt2q.errors import FlowError, NothingQuantizedWarning
from pt2q.ir.graph import named_tensors
from pt2q.quantizers import (
    StateQuantizer,
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
)

SIZES = {"large": (4, 3, 8, 8), "small": (2, 3, 6, 6)}
Programs = dict[str, QuantGraphModule]


class Pooled(nn.Module):
    """Images of any size, through a batch norm that training moves."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


def images(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(size, generator=generator) for name, size in SIZES.items()}


def exported() -> dict[str, torch.export.ExportedProgram]:
    with seeded(0):
        model = Pooled().train()
    return {name: torch.export.export(model, (x,)) for name, x in images(0).items()}


def trained(fast: bool = False) -> Programs:
    prepared = prepare_qat_pt2e(exported(), QATQuantizer(), fast=fast)
    parameters = {id(p): p for model in prepared.values() for p in model.train().parameters()}
    optimizer = torch.optim.SGD(parameters.values(), lr=0.05)
    for seed in range(4):
        optimizer.zero_grad()
        for name, x in images(seed).items():
            (prepared[name](x) - 0.5).square().mean().backward()
        optimizer.step()
    return prepared


@pytest.mark.parametrize("fast", [False, True])
def test_a_step_on_one_is_a_step_on_all(fast: bool) -> None:
    prepared = trained(fast)
    one, other = (dict(model.named_parameters()) for model in prepared.values())
    shared = [name for name in one if name in other and not name.startswith("activation_post")]
    assert {"conv.weight", "norm.weight", "head.weight", "head.bias"} <= set(shared)
    assert all(one[name] is other[name] for name in shared)
    before = exported()["large"].state_dict["head.weight"]
    assert not torch.equal(one["head.weight"], before)
    rounding = [
        {id(m) for m in model.modules() if hasattr(m, "fake_quant_enabled")}
        for model in prepared.values()
    ]
    assert len(rounding[0] & rounding[1]) == 2  # those of the weights

    converted = convert_pt2e(prepared)
    tensors = [named_tensors(model) for model in converted.values()]
    names = set(tensors[0]) & set(tensors[1])
    assert {"head.weight_quantized", "conv.weight_quantized", "conv.weight_scale"} <= names
    assert all(tensors[0][name].data_ptr() == tensors[1][name].data_ptr() for name in names)
    for name, x in images(9).items():
        expected = prepared[name].eval().apply(disable_observer)(x)
        assert sqnr(expected, converted[name](x)) > 40


def test_what_is_remembered_is_shared_and_stays() -> None:
    config = get_symmetric_quantization_config(is_qat=True)
    quantizer = StateQuantizer(XNNPACKQuantizer().set_global(config))
    prepared = prepare_qat_pt2e(two_programs(small_decoder(), 8), quantizer)
    logits = generate({name: model.eval() for name, model in prepared.items()}, 1, 8, 8)
    with torch.no_grad():
        converted = convert_pt2e(prepared)
    found = generate(copy.deepcopy(converted), 1, 8, 8)
    assert sqnr(logits, found) > 20


def test_observers_do_not_round_while_training() -> None:
    programs = two_programs(small_decoder(), 8)
    with pytest.warns(NothingQuantizedWarning, match="training does not see the rounding"):
        prepare_qat_pt2e(programs, XNNPACKQuantizer())
    with pytest.raises(FlowError, match="empty"):
        prepare_qat_pt2e({}, QATQuantizer())
