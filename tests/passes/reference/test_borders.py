"""Where integers meet floating point: quantize, dequantize, what others write into."""

from __future__ import annotations

import pytest
import torch
from support.nets import NETS
from support.quantized_programs import (
    assert_close,
    assert_integer,
    both,
    dq,
    dq_channels,
    q,
    whole,
    xnnpack,
)
from support.small_quantizers import (
    ACTIVATION,
    FunctionQuantizer,
)
from torch import nn
from torch.nn import functional as F

from pt2q import QuantizationAnnotation, convert_pt2e, prepare_pt2e, sqnr
from pt2q.errors import ReferenceIncompleteWarning
from pt2q.ir import ops
from pt2q.ir.graph import dump
from pt2q.passes.reference import RULES, NoIntegerForm, Quantized, ReferenceReport, reference_rule

qd = torch.ops.quantized_decomposed


aten = torch.ops.aten


def test_quantize_and_dequantize_are_bit_identical():
    x = torch.randn(4, 6) * 3

    def function(x, s, z):
        channels = qd.quantize_per_channel(x, s, z, 1, -128, 127, torch.int8)
        scale, zero = qd.choose_qparams_per_token_asymmetric(x, torch.int8)
        token = qd.quantize_per_token(x, scale, zero, -128, 127, torch.int8)
        return (
            q(x, 0.037, 5),
            dq(q(x, 0.037, 5), 0.037, 5),
            dq_channels(channels, s, z, 1),
            qd.dequantize_per_token(token, scale, zero, -128, 127, torch.int8, torch.float32),
        )

    scales = torch.logspace(-2, -1, 6)
    expected, found, model = both(function, (x,), (scales, torch.arange(6)))
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other)
    assert "decomposed.quantize" not in dump(model)
    assert "decomposed.dequantize" not in dump(model)


def test_one_value_read_by_float_and_by_quantize():
    x = whole(1, torch.int8, 2, 8)
    w = whole(2, torch.int8, 4, 8)

    def function(x, w):
        y = F.linear(dq(x, 0.1, 1), dq(w, 0.01, 0))
        return q(y, 0.2, 0), q(y.relu(), 0.1, -128), y.cumsum(0), F.layer_norm(y, (4,))

    expected, found, model = both(function, (x,), (w,))
    for one, other in zip(expected, found, strict=True):
        assert (one.double() - other.double()).abs().max() < (
            1.01 if one.dtype == torch.int8 else 1e-4
        )
    assert sum(ops.is_op(n, ops.LINEAR) for n in model.graph.nodes) == 1


def test_in_place_activation_others_see_is_left_alone():
    x = whole(1, torch.int8, 2, 8)

    def function(x):
        y = dq(x, 0.1, 1) * 2.0
        z = y.view(4, 4)
        y.relu_()
        return q(z.clone(), 0.2, 0), q(y, 0.2, 0)

    expected, found, _ = both(function, (x,))
    for one, other in zip(expected, found, strict=True):
        assert_close(one, other)


def test_all_nodes_have_metadata():
    net = NETS["small_resnet"].build()
    x = NETS["small_resnet"].inputs()
    prepared = prepare_pt2e(torch.export.export(net, x), xnnpack())
    prepared(*x)
    model = convert_pt2e(prepared, use_reference_representation=True)
    for node in model.graph.nodes:
        if node.op == "call_function":
            assert node.meta["val"] is not None and node.meta["nn_module_stack"], node
            assert node.meta["from_node"], node


def test_the_user_adds_a_rule():
    target = aten.cumsum.default

    @reference_rule(target)
    def cumsum(call):
        x = call.quantized("self", static=True)
        if call.argument("dim") != 0:
            raise NoIntegerForm("only along dimension 0")
        from pt2q.passes.reference import Sum, Term

        term = call.widened(x).terms[0]
        node = call.emit.call(target, term.node, 0, dtype=torch.int32)
        return Sum((Term(node, term.scale, term.bound * x.node.meta["val"].shape[0]),))

    try:
        x = whole(1, torch.int8, 4, 5)
        expected, found, model = both(lambda x: q(dq(x, 0.1, 3).cumsum(0), 0.3, 0), (x,))
        assert_integer(model)
        assert_close(expected, found)
        _, _, model = both(lambda x: q(dq(x, 0.1, 3).cumsum(1), 0.3, 0), (x,))
        assert "only along dimension 0" in str(model.record.get(ReferenceReport))
    finally:
        del RULES[target]
    assert isinstance(Quantized, type)


def test_what_has_no_integer_form_is_named():
    class Net(nn.Module):
        def forward(self, x):
            return F.layer_norm(x, (6,))

    x = torch.randn(3, 6)

    def annotate(node):
        if "layer_norm" not in str(node.target):
            return None
        return QuantizationAnnotation({node.args[0]: ACTIVATION}, ACTIVATION)

    prepared = prepare_pt2e(torch.export.export(Net(), (x,)), FunctionQuantizer(annotate))
    prepared(x)
    with pytest.warns(ReferenceIncompleteWarning, match=r"layer_norm.*no rule"):
        model = convert_pt2e(prepared, use_reference_representation=True)
    assert sqnr(convert_pt2e(prepared)(x), model(x)) > 60
    assert any("layer_norm" in note.node for note in model.record.notes)
