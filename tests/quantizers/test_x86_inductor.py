"""What the x86 quantizer fuses, and why the rest stays in float."""

from __future__ import annotations

import pytest
import torch
from support.nets import NETS
from support.small_quantizers import PER_TOKEN, UNSIGNED, SmallQuantizer
from support.x86_inductor import Net, converted
from torch import nn
from torch.nn import functional as F

from pt2q import convert_pt2e, prepare_pt2e, prepare_qat_pt2e, sqnr
from pt2q.deploy import inductor
from pt2q.ir.module import import_exported
from pt2q.quantizers import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
    get_x86_inductor_linear_dynamic_fp16_config,
)

IMAGE = (torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(1)),)


ROWS = (torch.randn(4, 32, generator=torch.Generator().manual_seed(2)),)


DYNAMIC = get_default_x86_inductor_quantization_config(is_dynamic=True)


@pytest.mark.parametrize(
    ("activation", "post_op"),
    [
        (F.relu, "relu"),
        (F.relu6, "hardtanh"),
        (F.hardswish, "hardswish"),
        (F.silu, "swish"),
    ],
)
def test_convolution_takes_in_what_follows_and_writes_uint8(activation, post_op):
    _, model = converted(lambda n, x: n.conv2(activation(n.conv(x))), IMAGE)
    report = inductor.fusion_report(model, IMAGE)
    assert not report.not_fused
    assert report["conv2d"].detail == f"{post_op}, writes uint8"
    assert report["conv2d_1"].kernel == "onednn.qconv"


def test_residual_addition_runs_in_the_convolution():
    def residual(n, x):
        x = F.relu(n.conv(x))
        x = F.relu(n.conv2(n.conv(x)) + x)
        return n.conv(x)

    _, model = converted(residual, IMAGE)
    report = inductor.fusion_report(model, IMAGE)
    assert [row.detail for row in report if row.computes] == [
        "relu, writes uint8",
        "writes uint8",
        "sum, relu, writes uint8",
        "writes float32",
    ]
    assert report["add"].detail == "fused into conv2d_2"


def test_pools_and_concatenation_stay_in_integers_between_convolutions():
    def chain(n, x):
        x = F.max_pool2d(F.relu(n.conv(x)), 2)
        x = n.conv2(torch.cat([x, F.relu(n.conv2(x))], 1)[:, :8])
        return F.adaptive_avg_pool2d(n.conv(x), 1).flatten(1)

    quantizer = X86InductorQuantizer()
    _, model = converted(chain, IMAGE, quantizer)
    report = inductor.fusion_report(model, IMAGE)
    assert not report.not_fused
    assert report["conv2d"].detail == "relu, writes uint8"
    assert quantizer.report()["max_pool2d"].quantized


@pytest.mark.parametrize("dynamic", [False, True])
def test_linear_layers_take_in_relu_and_gelu(dynamic):
    quantizer = X86InductorQuantizer(DYNAMIC if dynamic else None)
    _, model = converted(
        lambda n, x: n.linear2(F.gelu(n.linear(F.relu(n.linear2(x))))), ROWS, quantizer
    )
    report = inductor.fusion_report(model, ROWS)
    assert len(report.fused) == 3
    details = [row.detail.split(",")[0] for row in report.fused]
    assert details[:2] == ["relu", "gelu"]


def test_reasons_are_given_for_what_stays_in_float():
    def several(n, x):
        return n.up(n.conv(x)), n.conv1d(x[0]), torch.matmul(x, x.transpose(-1, -2))

    quantizer = X86InductorQuantizer()
    _, model = converted(several, IMAGE, quantizer)
    rows = {row.operator: row.how for row in quantizer.report().left_float}
    assert "transposed" in rows["aten.conv_transpose2d.input"]
    assert "two activations" in rows["aten.matmul.default"]
    report = inductor.fusion_report(model, IMAGE)
    assert {row.operator for row in report.fused} == {"aten.conv2d.default", "aten.conv1d.default"}

    _, per_token = converted(lambda n, x: n.linear(x), ROWS, SmallQuantizer(PER_TOKEN))
    row = inductor.fusion_report(per_token, ROWS)["linear"]
    assert not row.kernel
    assert "per token" in row.detail
    assert row.reason is not None and row.reason.code == "inductor-per-token"


def reasons(function, inputs, quantizer=None):
    quantizer = quantizer or X86InductorQuantizer()
    quantizer.annotate(import_exported(torch.export.export(Net(function).eval(), inputs)))
    return {row.node: row.how.removeprefix("float: ") for row in quantizer.report().left_float}


def test_reasons_say_what_is_before_an_activation():
    found = reasons(lambda n, x: n.conv2(F.gelu(n.conv(x))), IMAGE)
    assert found == {
        "gelu": "Inductor's convolutions take in relu, relu6, hardtanh, hardswish and silu only"
    }
    found = reasons(lambda n, x: n.linear2(F.silu(n.linear(x))), ROWS)
    assert found == {"silu": "Inductor's linear layers take in relu and gelu only"}
    found = reasons(lambda n, x: (lambda y: n.conv2(F.relu(y)) + y)(n.conv(x)), IMAGE)
    assert found["relu"] == "others read the result of conv2d too"
    found = reasons(lambda n, x: F.relu(n.conv(x[0])) + n.conv(x).sum(0), IMAGE)
    assert found["relu"] == "conv2d before it stays in float"
    found = reasons(lambda n, x: n.conv2(F.relu(x.sin())), IMAGE)
    assert found["relu"] == "it does not directly follow a convolution or linear layer"


def test_reasons_say_what_is_wrong_with_an_addition():
    found = reasons(lambda n, x: n.conv2(n.conv(x) + x), IMAGE)
    assert found["add"].startswith("it adds the input of a convolution to its result")
    found = reasons(lambda n, x: n.conv2((lambda y: y + y.sin())(n.conv(x))), IMAGE)
    assert found["add"].startswith("the result of a convolution has other readers too")
    found = reasons(lambda n, x: n.conv2(x.sin() + x.cos()), IMAGE)
    assert found["add"].startswith("no operand comes straight from a convolution")


def test_products_of_activations_are_rounded_where_asked_for():
    def attention(n, x):
        return n.linear2(torch.matmul(n.linear(x), x.transpose(-1, -2)) @ x)

    default = get_default_x86_inductor_quantization_config()
    quantizer = X86InductorQuantizer().set_global(default)
    found = reasons(attention, ROWS, quantizer)
    assert set(found.values()) == {"Inductor multiplies two activations in float"}
    quantizer.set_function_type_qconfig(torch.matmul, default)
    assert reasons(attention, ROWS, quantizer) == {}
    _, model = converted(attention, ROWS, quantizer)
    report = inductor.fusion_report(model, ROWS)
    assert {row.operator for row in report.not_fused} == {"aten.matmul.default"}
    assert all("two activations in float" in row.detail for row in report.not_fused)
    out = inductor.compile(model)(*ROWS)
    assert sqnr(model(*ROWS), out) > 50


@pytest.mark.parametrize("dynamic", [False, True])
def test_linear_layers_on_vectors_stay_in_float(dynamic):
    quantizer = X86InductorQuantizer(DYNAMIC if dynamic else None)
    found = reasons(lambda n, x: n.linear2(n.linear(x[0])), ROWS, quantizer)
    assert found == dict.fromkeys(("linear", "linear_1"), "its input has no batch dimension")


def test_a_product_too_small_for_a_kernel_is_named():
    small = nn.Sequential(nn.Linear(16, 16))
    _, model = converted(small, (torch.randn(1, 16),))
    (row,) = inductor.fusion_report(model, (torch.randn(1, 16),)).not_fused
    assert row.detail.startswith("one row times so small a weight")
    assert row.reason is not None and row.reason.code == "inductor-small-product"
    _, model = converted(nn.Sequential(nn.Linear(17, 16)), (torch.randn(1, 17),))
    assert len(inductor.fusion_report(model, (torch.randn(1, 17),)).fused) == 1


def test_one_scale_per_weight_and_tied_weights_are_fused_too():
    def twice(n, x):
        return n.conv(F.relu(n.conv(x)))

    _, model = converted(twice, IMAGE, SmallQuantizer(UNSIGNED, "per_tensor"))
    assert len(inductor.fusion_report(model, IMAGE).fused) == 2


def test_quantization_aware_training_ends_in_the_same_kernels():
    model = nn.Sequential(
        nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)
    )
    quantizer = X86InductorQuantizer(get_default_x86_inductor_quantization_config(is_qat=True))
    prepared = prepare_qat_pt2e(torch.export.export(model.train(), IMAGE), quantizer)
    prepared(*IMAGE)
    report = inductor.fusion_report(convert_pt2e(prepared), IMAGE)
    assert [row.detail for row in report.fused] == ["relu, writes uint8", "writes float32"]


def test_attention_keeps_its_masks_and_integers():
    net = NETS["small_bert"]
    quantizer = X86InductorQuantizer()
    _, model = converted(net.build(), net.inputs(2), quantizer)
    report = inductor.fusion_report(model, net.inputs(2))
    assert len(report.fused) == 13
    assert not report.not_fused


def test_weights_of_linear_layers_in_half_precision():
    net = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    quantizer = X86InductorQuantizer().set_global(get_x86_inductor_linear_dynamic_fp16_config())
    model = convert_pt2e(prepare_pt2e(torch.export.export(net, ROWS), quantizer))
    weights = [t for t in model.state_dict().values() if t.dim() == 2]
    assert [w.dtype for w in weights] == [torch.float16, torch.float16]
    hidden = F.relu(F.linear(*ROWS, weights[0].float(), net[0].bias))
    assert torch.equal(model(*ROWS), F.linear(hidden, weights[1].float(), net[2].bias))
    assert {row.rule for row in quantizer.report() if row.quantized} == {"linear in half precision"}


def test_a_small_input_of_a_concatenation_keeps_its_integers() -> None:
    """Read elsewhere too, it would be rounded away in the scale of the large one."""

    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.small, self.large = (nn.Conv2d(3, 4, 3, padding=1) for _ in range(2))
            self.own = nn.Conv2d(4, 8, 3, padding=1)
            self.joint = nn.Conv2d(8, 8, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            small = self.small(x)
            y: torch.Tensor = self.own(small) * 100
            return y + self.joint(torch.cat([small, self.large(x)], 1))

    torch.manual_seed(0)
    model, x = Joined().eval(), torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        model.small.weight.mul_(0.01)
        model.small.bias.zero_()
        model.own.bias.zero_()
    prepared = prepare_pt2e(torch.export.export(model, (x,)), X86InductorQuantizer())
    prepared(x)
    with torch.no_grad():
        assert sqnr(model(x), convert_pt2e(prepared)(x)) > 30
