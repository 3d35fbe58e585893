"""Static int8 from end to end: the text of small graphs beside the values they compute."""

from __future__ import annotations

import pytest
import torch
from support.flow import converted, exported, prepared
from support.golden import assert_golden_graph, exact, exact_input
from support.laws import assert_laws
from support.nets import NETS
from support.nodes import nodes_of
from support.results import assert_same
from support.rounding_reference import rounded
from support.small_models import ConvReluAddCat
from support.small_quantizers import (
    SmallQuantizer,
)
from torch import nn

from pt2q import (
    convert_pt2e,
    prepare_pt2e,
    sqnr,
)
from pt2q.ir import ops

aten, qd = torch.ops.aten, torch.ops.quantized_decomposed


def test_conv_relu_add_cat() -> None:
    model, x = exact(ConvReluAddCat()), exact_input(1, 2, 4, 4)
    ready = prepared(model, SmallQuantizer(), x)
    assert_golden_graph("conv_relu_add_cat_prepared", ready)
    done = convert_pt2e(ready)
    assert_golden_graph("conv_relu_add_cat_converted", done)
    assert_laws(done, converted=True)
    assert_same(done(x), rounded(ready, x))
    assert sqnr(model(x), done(x)) > 30
    # One set of parameters for all that the addition and the concatenation touch.
    shared = {n.args[1:3] for n in nodes_of(done, ops.QUANTIZE)[-4:]}
    assert len(shared) == 1


def test_per_channel_weights_are_the_rounded_ones() -> None:
    model = nn.Conv2d(3, 5, 3)
    model.weight.mul_(torch.logspace(-3, 2, 5).reshape(-1, 1, 1, 1))
    done, _ = converted(model, SmallQuantizer(), torch.randn(2, 3, 6, 6))
    scale = model.weight.abs().amax((1, 2, 3)) / 127
    torch.testing.assert_close(done.weight_scale, scale, rtol=1e-6, atol=0)
    expected = (model.weight / scale.reshape(-1, 1, 1, 1)).round()
    assert done.weight_quantized.dtype == torch.int8
    assert torch.equal(done.weight_quantized.float(), expected)
    assert done.weight_quantized.abs().amax((1, 2, 3)).eq(127).all()
    assert done.weight_zero_point.eq(0).all()


def test_transposed_convolutions_along_their_own_axis() -> None:
    model = nn.ConvTranspose2d(4, 6, 3)
    done, _ = converted(model, SmallQuantizer(), torch.randn(2, 4, 5, 5))
    assert done.weight_scale.shape == (6,)
    (dequantize,) = nodes_of(done, frozenset({qd.dequantize_per_channel.default}))
    assert ops.argument(dequantize, "axis") == 1


@pytest.mark.parametrize("name", ["small_resnet", "small_mobilenet", "small_vit"])
def test_networks_compute_what_their_observers_say(name: str) -> None:
    net = NETS[name].build()
    inputs = NETS[name].inputs(2)
    ready = prepare_pt2e(exported(net, *inputs), SmallQuantizer())
    ready(*inputs)
    done = convert_pt2e(ready)
    assert_laws(ready, converted=False)
    assert_laws(done, converted=True)
    assert_same(done(*inputs), rounded(ready, *inputs), 1e-5)
    assert sqnr(net(*inputs), done(*inputs)) > 15
    assert_same(torch.export.export(done, inputs).module()(*inputs), done(*inputs))
