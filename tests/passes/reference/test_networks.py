"""Whole networks stay within one step per operator of their quantized form."""

from __future__ import annotations

import warnings

import pytest
import torch
from support.nets import NETS
from support.quantized_programs import xnnpack
from support.small_quantizers import (
    SmallQuantizer,
)
from torch import nn
from torch.nn import functional as F

from pt2q import convert_pt2e, prepare_pt2e, sqnr
from pt2q.errors import ReferenceIncompleteWarning
from pt2q.ir import ops
from pt2q.ir.graph import dump
from pt2q.passes.reference import ReferenceReport


class Recorder(torch.fx.Interpreter):
    """Remembers what each quantize gave."""

    def __init__(self, model) -> None:
        super().__init__(model)
        self.found = {}

    def run_node(self, n):
        result = super().run_node(n)
        if ops.is_op(n, ops.QUANTIZE):
            self.found[n.name] = result
        return result


class Stepper(torch.fx.Interpreter):
    """Compares each integer result with the recorded one, and goes on with that."""

    def __init__(self, model, recorded) -> None:
        super().__init__(model)
        self.recorded = recorded
        last = {}
        for node in model.graph.nodes:
            if node.op == "call_function":
                last[node.meta["from_node"][-1].name] = node
        self.stands_for = {node: name for name, node in last.items() if name in recorded}
        self.distances = []

    def run_node(self, n):
        result = super().run_node(n)
        name = self.stands_for.get(n)
        if name is None:
            return result
        expected = self.recorded[name]
        self.distances.append(int((result.long() - expected.long()).abs().max()))
        return expected


@pytest.mark.parametrize(
    ("name", "least"),
    [("small_mobilenet", 25), ("small_resnet", 40), ("small_vit", 30), ("small_bert", 35)],
)
def test_network_within_one_step_per_operator(name, least):
    net, inputs = NETS[name].build(), NETS[name].inputs(2)
    prepared = prepare_pt2e(torch.export.export(net, inputs), xnnpack())
    prepared(*inputs)
    expected = convert_pt2e(prepared)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReferenceIncompleteWarning)
        model = convert_pt2e(prepared, use_reference_representation=True)
    with torch.no_grad():
        recorder = Recorder(expected)
        reference = recorder.run(*inputs)
        stepper = Stepper(model, recorder.found)
        stepper.run(*inputs)
        assert len(stepper.distances) > 0.6 * len(recorder.found)
        assert max(stepper.distances) <= 1
        assert sqnr(reference, model(*inputs)) > least
        again = torch.export.export(model, inputs).module()
        assert torch.equal(again(*inputs), model(*inputs))


@pytest.mark.slow
def test_mobilenet_v2_within_one_step_per_operator():
    test_network_within_one_step_per_operator("mobilenet_v2", 5)


def test_a_batch_of_any_size():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    ).eval()
    x = torch.randn(2, 3, 8, 8)
    shapes = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(net, (x,), dynamic_shapes=shapes)
    prepared = prepare_pt2e(exported, xnnpack())
    prepared(x)
    expected = convert_pt2e(prepared)
    model = convert_pt2e(prepared, use_reference_representation=True)
    assert not model.record.get(ReferenceReport).left
    many = torch.randn(5, 3, 8, 8)
    scale = float((expected(many) - model(many)).abs().max())
    assert scale < 0.05
    torch.export.export(model, (x,), dynamic_shapes=shapes)


def test_weights_that_were_not_folded():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    x = torch.randn(2, 3, 8, 8)
    prepared = prepare_pt2e(torch.export.export(net, (x,)), xnnpack())
    prepared(x)
    expected = convert_pt2e(prepared)(x)
    model = convert_pt2e(prepared, True, fold_quantize=False)
    assert (model(x) - expected).abs().max() < 0.05
    assert "quantized_decomposed" not in dump(model)


def test_both_branches_of_a_cond():
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return torch.cond(
                x.sum() > 0, lambda x: F.relu(self.a(x)), lambda x: self.b(x) * 2, (x,)
            )

    x = torch.randn(2, 8).abs()
    prepared = prepare_pt2e(torch.export.export(Branches().eval(), (x,)), SmallQuantizer())
    prepared(x)
    prepared(-x)
    expected, model = convert_pt2e(prepared), convert_pt2e(prepared, True)
    for sign in (1, -1):
        assert sqnr(expected(sign * x), model(sign * x)) > 35
    assert "quantized_decomposed" not in model.print_readable(print_output=False)
