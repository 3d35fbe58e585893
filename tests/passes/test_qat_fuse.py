"""Convolution and batch norm in training: the same function, the folded weight rounded."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.nodes import count
from support.qat_quantizer import ACTIVATION, PER_TENSOR, QATQuantizer, per_channel, prepare
from torch import nn

import pt2q
from pt2q.errors import BatchNormNotFoldedWarning
from pt2q.passes import verified_passes
from pt2q.passes.batch_norm.qat_record import fused_pairs

KINDS = {
    "conv1d": (nn.Conv1d, nn.BatchNorm1d, (9,)),
    "conv2d": (nn.Conv2d, nn.BatchNorm2d, (7, 6)),
    "conv3d": (nn.Conv3d, nn.BatchNorm3d, (4, 5, 4)),
    "transposed1d": (nn.ConvTranspose1d, nn.BatchNorm1d, (6,)),
    "transposed2d": (nn.ConvTranspose2d, nn.BatchNorm2d, (4, 5)),
    "transposed3d": (nn.ConvTranspose3d, nn.BatchNorm3d, (3, 2, 3)),
    "linear": (nn.Linear, nn.BatchNorm1d, ()),
}
# bias, affine, relu, eps, momentum, groups, same
CONFIGS = {
    "plain": (False, True, True, 1e-5, 0.1, 1, False),
    "bias": (True, True, False, 1e-3, 0.3, 1, False),
    "not_affine": (True, False, True, 1e-5, 0.1, 2, False),
    "depthwise": (False, True, True, 0.01, None, 4, True),
}


def build(kind: str, bias, affine, relu, eps, momentum, groups, same) -> nn.Sequential:
    layer, norm, _ = KINDS[kind]
    norm = norm(8, eps=eps, momentum=momentum, affine=affine)
    if kind == "linear":
        layers: list[nn.Module] = [nn.Linear(4, 8, bias=bias), norm]
    else:
        padding = {"padding": "same"} if same and "transposed" not in kind else {}
        layers = [layer(4, 8, 3, groups=groups, bias=bias, **padding), norm]
    if affine:
        nn.init.uniform_(norm.weight, -1.5, 1.5)
        nn.init.normal_(norm.bias)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    return nn.Sequential(*layers, *([nn.ReLU()] if relu else []))


def batch(kind: str, size: int = 6) -> torch.Tensor:
    return torch.randn(size, 4, *KINDS[kind][2])


def close(actual: torch.Tensor, expected: torch.Tensor, what: str = "") -> None:
    scale = max(float(expected.detach().abs().max()), 1e-2)
    torch.testing.assert_close(actual, expected, rtol=0, atol=3e-5 * scale, msg=what)


def train_together(model: nn.Module, prepared: nn.Module, kind: str, steps: int) -> None:
    """Both models take the same steps; every number is compared at every step."""
    parameters = dict(prepared.named_parameters())
    for _ in range(steps):
        x = batch(kind)
        expected, actual = model(x), prepared(x)
        close(actual, expected, "forward")
        weights = torch.randn_like(expected)
        model.zero_grad()
        prepared.zero_grad()
        (expected * weights).sum().backward()
        (actual * weights).sum().backward()
        largest = max(float(p.grad.abs().max()) for p in model.parameters())
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                grad = parameters[name].grad
                torch.testing.assert_close(
                    grad, parameter.grad, rtol=1e-3, atol=1e-5 * largest, msg=name
                )
                step = 0.01 * parameter.grad
                parameter -= step
                parameters[name] -= step
    for name, value in model.named_buffers():
        torch.testing.assert_close(prepared.get_buffer(name), value, rtol=1e-4, atol=1e-5, msg=name)


def check_fold(prepared: nn.Module, kind: str) -> None:
    """With rounding on: what is converted is what was trained."""
    prepared.train()
    for _ in range(3):
        prepared(batch(kind))
    prepared.apply(pt2q.disable_observer)
    prepared.eval()
    x = batch(kind)
    with verified_passes():
        converted = pt2q.convert_pt2e(prepared)
    assert count(converted, "batch_norm", "add_", "sqrt", "activation_post_process") == 0
    assert pt2q.sqnr(prepared(x), converted(x)) > 40


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_trains_like_float_and_folds(kind: str, config: str, fast: bool) -> None:
    model = build(kind, *CONFIGS[config])
    prepared = prepare(model, batch(kind), fast=fast)
    assert len(fused_pairs(prepared.record)) == 1
    prepared.apply(pt2q.disable_fake_quant)
    train_together(model.train(), prepared, kind, 3)
    close(prepared.eval()(x := batch(kind)), model.eval()(x), "evaluation")
    train_together(model, prepared, kind, 1)
    prepared.apply(pt2q.enable_fake_quant)
    check_fold(prepared, kind)


@given(
    kind=st.sampled_from(sorted(KINDS)),
    bias=st.booleans(),
    affine=st.booleans(),
    relu=st.booleans(),
    eps=st.sampled_from([1e-5, 1e-3, 0.3]),
    momentum=st.sampled_from([0.1, 0.9, None]),
    groups=st.sampled_from([1, 2, 4]),
    same=st.booleans(),
    fast=st.booleans(),
)
@settings(max_examples=12, deadline=None)
def test_any_configuration(kind, bias, affine, relu, eps, momentum, groups, same, fast) -> None:
    model = build(kind, bias, affine, relu, eps, momentum, groups, same)
    prepared = prepare(model, batch(kind), quantizer=QATQuantizer(bias=bias), fast=fast)
    prepared.apply(pt2q.disable_fake_quant)
    train_together(model.train(), prepared, kind, 2)
    prepared.apply(pt2q.enable_fake_quant)
    check_fold(prepared, kind)


# ------------------------------------------------------------------ bits


def fx_qconfig(unsigned: bool = False):
    import torch.ao.quantization as tq

    activation = tq.FusedMovingAvgObsFakeQuantize.with_args(
        observer=tq.MovingAverageMinMaxObserver,
        quant_min=0 if unsigned else -128,
        quant_max=255 if unsigned else 127,
        dtype=torch.quint8 if unsigned else torch.qint8,
        qscheme=torch.per_tensor_affine,
    )
    weight = tq.FusedMovingAvgObsFakeQuantize.with_args(
        observer=tq.MovingAveragePerChannelMinMaxObserver,
        quant_min=-127,
        quant_max=127,
        dtype=torch.qint8,
        qscheme=torch.per_channel_symmetric,
        averaging_constant=1.0,
    )
    return tq.QConfig(activation, weight)


FX_KINDS = {
    1: (nn.Conv1d, nn.BatchNorm1d, "ConvBnReLU1d"),
    2: (nn.Conv2d, nn.BatchNorm2d, "ConvBnReLU2d"),
    3: (nn.Conv3d, nn.BatchNorm3d, "ConvBnReLU3d"),
}


class Chain(nn.Module):
    """Three fused modules of torch and the fake quantizers between them."""

    def __init__(self, model: nn.Sequential, dims: int) -> None:
        super().__init__()
        import torch.ao.nn.intrinsic as fused
        import torch.ao.nn.intrinsic.qat as qat

        qconfig, name = fx_qconfig(), FX_KINDS[dims][2]
        blocks = []
        for i in range(0, len(model), 3):
            block = getattr(fused, name)(*copy.deepcopy(model[i : i + 3]).train())
            block.qconfig = qconfig
            blocks.append(getattr(qat, name).from_float(block))
        self.blocks = nn.ModuleList(blocks)
        self.quants = nn.ModuleList(qconfig.activation() for _ in range(len(blocks) + 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.quants[0](x)
        for block, quant in zip(self.blocks, self.quants[1:], strict=True):
            x = quant(block(x))
        return x


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_bits_are_those_of_the_eager_modules(dims: int, bias: bool) -> None:
    conv, norm, _ = FX_KINDS[dims]
    widths, layers = (3, 8, 8, 6), []
    for i in range(3):
        layers += [conv(widths[i], widths[i + 1], 3, padding=1, bias=bias), norm(widths[i + 1])]
        layers.append(nn.ReLU())
    model = nn.Sequential(*layers)
    theirs = Chain(model, dims)
    ours = prepare(model, torch.randn(8, 3, *(6,) * dims))
    ours_sgd = torch.optim.SGD(ours.parameters(), lr=0.05, momentum=0.9)
    order = sorted(dict(model.named_parameters()))
    theirs_sgd = torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=0.9)
    for _ in range(4):
        x = torch.randn(8, 3, *(6,) * dims)
        a, b = ours(x), theirs(x)
        assert torch.equal(a, b)
        for out, optimizer in ((a, ours_sgd), (b, theirs_sgd)):
            optimizer.zero_grad()
            out.square().mean().backward()
            optimizer.step()
    found = dict(ours.named_parameters())
    assert sorted(found) == order
    for i, block in enumerate(theirs.blocks):
        assert torch.equal(found[f"{3 * i}.weight"], block.weight)
        assert torch.equal(found[f"{3 * i + 1}.weight"], block.bn.weight)
        assert torch.equal(ours.get_buffer(f"{3 * i + 1}.running_var"), block.bn.running_var)


@pytest.mark.filterwarnings("ignore")
def test_bits_are_those_of_prepare_qat_fx() -> None:
    from torch.ao.quantization import QConfigMapping, quantize_fx
    from torch.ao.quantization.backend_config import get_native_backend_config

    layers = []
    for width in (3, 8):
        layers += [nn.Conv2d(width, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    model, example = nn.Sequential(*layers).train(), torch.randn(8, 3, 8, 8)
    unsigned = replace(ACTIVATION, dtype=torch.uint8, quant_min=0, quant_max=255)
    ours = prepare(model, example, quantizer=QATQuantizer(activation=unsigned))
    mapping = QConfigMapping().set_global(fx_qconfig(unsigned=True))
    theirs = quantize_fx.prepare_qat_fx(
        copy.deepcopy(model), mapping, (example,), backend_config=get_native_backend_config()
    )
    assert sum("FakeQuantize" in type(m).__name__ for m in theirs.modules()) == 5
    pairs = [(m, torch.optim.Adam(m.parameters(), lr=0.01)) for m in (ours.train(), theirs.train())]
    for _ in range(4):
        x = torch.randn(8, 3, 8, 8)
        outputs = []
        for prepared, optimizer in pairs:
            optimizer.zero_grad()
            outputs.append(prepared(x))
            outputs[-1].square().mean().backward()
            optimizer.step()
        assert torch.equal(*outputs)


def test_gradient_is_the_straight_through_formula() -> None:
    """The fused form written once more, with `detach` for the rounding."""
    model = build("conv2d", *CONFIGS["bias"])
    conv, bn = model[0], model[1]
    quantizer = QATQuantizer(activation=None)
    prepared = prepare(model, batch("conv2d"), quantizer=quantizer)
    x = batch("conv2d")
    std = torch.sqrt(bn.running_var + bn.eps)
    s = (bn.weight / std).reshape(-1, 1, 1, 1)
    folded = conv.weight * s
    step = folded.detach().abs().amax((1, 2, 3), keepdim=True)
    step = torch.maximum(
        folded.detach().amin((1, 2, 3), keepdim=True).abs() / 128,
        folded.detach().amax((1, 2, 3), keepdim=True) / 127,
    ) * (255 / 254)
    levels = folded / step
    inside = (levels.round() >= -127) & (levels.round() <= 127)
    rounded = levels.round().clamp(-127, 127) * step
    folded = folded * inside
    y = torch.conv2d(x, folded + (rounded - folded).detach()) / s.reshape(1, -1, 1, 1)
    y = y + conv.bias.reshape(1, -1, 1, 1)
    mean, var = y.mean((0, 2, 3), keepdim=True), y.var((0, 2, 3), correction=0, keepdim=True)
    y = (y - mean) / torch.sqrt(var + bn.eps)
    expected = y * bn.weight.reshape(1, -1, 1, 1) + bn.bias.reshape(1, -1, 1, 1)
    actual = prepared(x)
    close(actual, expected)
    weights = torch.randn_like(expected)
    (expected * weights).sum().backward()
    (actual * weights).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            prepared.get_parameter(name).grad, parameter.grad, rtol=1e-3, atol=1e-3, msg=name
        )


# ------------------------------------------------------------------ corners


@pytest.mark.parametrize("fast", [False, True])
def test_a_channel_without_weight_does_not_become_nan(fast: bool) -> None:
    model = build("conv2d", *CONFIGS["bias"])
    nn.init.zeros_(model[1].weight)
    prepared = prepare(model, batch("conv2d"), fast=fast)
    prepared.apply(pt2q.disable_fake_quant)
    train_together(model.train(), prepared, "conv2d", 2)
    nn.init.zeros_(prepared.get_parameter("1.weight"))
    prepared.apply(pt2q.enable_fake_quant)
    check_fold(prepared, "conv2d")


class SharedConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3)
        self.one, self.other = nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one(self.conv(x)) + self.other(self.conv(x))


def test_one_weight_under_two_batch_norms() -> None:
    model = SharedConv()
    nn.init.uniform_(model.other.weight, 0.5, 2.0)
    prepared = prepare(model, batch("conv2d"))
    assert len(fused_pairs(prepared.record)) == 2
    prepared.apply(pt2q.disable_fake_quant)
    train_together(model.train(), prepared, "conv2d", 2)
    prepared.apply(pt2q.enable_fake_quant)
    check_fold(prepared, "conv2d")


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.bn(y) + y


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Branching(), "also read by"),
        (nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)), "not a convolution"),
        (
            nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8, track_running_stats=False)),
            "no running statistics",
        ),
    ],
)
def test_what_cannot_be_fused_is_named(model: nn.Module, reason: str) -> None:
    with pytest.warns(BatchNormNotFoldedWarning, match=reason):
        prepared = prepare(
            nn.Sequential(model, nn.Conv2d(8 if len(list(model.parameters())) > 2 else 4, 4, 1)),
            batch("conv2d"),
        )
    assert not fused_pairs(prepared.record)
    prepared(batch("conv2d"))
    converted = pt2q.convert_pt2e(prepared)
    converted(batch("conv2d"))


def test_a_layer_left_in_float_is_folded_at_conversion() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1))

    class OnlyLast(QATQuantizer):
        def _layer(self, node) -> None:
            if node.name == "conv2d_1":
                super()._layer(node)

    prepared = prepare(model, batch("conv2d"), quantizer=OnlyLast())
    for _ in range(2):
        prepared(batch("conv2d"))
    prepared.apply(pt2q.disable_observer)
    converted = pt2q.convert_pt2e(prepared.eval())
    assert count(converted, "batch_norm", "add_") == 0
    x = batch("conv2d")
    assert pt2q.sqnr(prepared(x), converted(x)) > 40


def test_references_follow_the_moved_edges() -> None:
    """An int32 bias is derived from the scaled weight's parameters, before and after folding."""
    model = build("conv2d", *CONFIGS["bias"])
    prepared = prepare(model, batch("conv2d"), quantizer=QATQuantizer(bias=True))
    for _ in range(2):
        prepared(batch("conv2d"))
    prepared.apply(pt2q.disable_observer)
    converted = pt2q.convert_pt2e(prepared.eval(), fold_quantize=False)
    bias = next(n for n in converted.graph.nodes if n.target == "0.bias")
    (quantize,) = bias.users
    scales = {n.target: converted.get_buffer(n.target) for n in quantize.all_input_nodes[1:2]}
    weight = next(v for k, v in converted.named_buffers() if k == "0.weight_scale")
    (found,) = scales.values()
    activation = next(
        n.args[1] for n in converted.graph.nodes if "quantize_per_tensor" in str(n.target)
    )
    torch.testing.assert_close(found, activation * weight)


def test_shared_specs_follow_the_moved_edges() -> None:
    from pt2q.spec.specs import QUANT_ANNOTATION_KEY, SharedQuantizationSpec

    model = nn.Sequential(
        nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    )

    class Sharing(QATQuantizer):
        def annotate(self, graph):
            super().annotate(graph)
            one, other = (n for n in graph.graph.nodes if "conv2d" in str(n.target))
            weights = other.meta[QUANT_ANNOTATION_KEY].input_qspec_map
            weights[other.args[1]] = SharedQuantizationSpec((one.args[1], one))
            return graph

    prepared = prepare(model, batch("conv2d"), quantizer=Sharing(weight=PER_TENSOR))
    users = [n for n in prepared.graph.nodes if "conv2d" in str(n.target)]
    assert users[0].args[1].target == users[1].args[1].target


def test_weights_are_quantized_with_the_scale_of_training() -> None:
    model = build("conv2d", *CONFIGS["plain"])
    prepared = prepare(model, batch("conv2d"))
    prepared(batch("conv2d"))
    trained = {
        tuple(m.scale.shape): m.scale.clone()
        for m in prepared.modules()
        if isinstance(m, pt2q.FakeQuantize)
    }
    converted = pt2q.convert_pt2e(prepared.apply(pt2q.disable_observer))
    assert torch.equal(converted.get_buffer("0.weight_scale"), trained[(8,)])


def test_golden() -> None:
    from pt2q.ir.graph import dump

    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
    quantizer = QATQuantizer(activation=ACTIVATION, weight=per_channel(0))
    text = dump(prepare(model, batch("linear"), quantizer=quantizer))
    body = [line for line in text.splitlines() if "get_attr" not in line]
    assert body == [
        "%input_1 = placeholder(input)",
        "%activation_post_process_0 = activation_post_process_0(%input_1)",
        "%snapshot_default = pt2q.snapshot.default(%_1_running_var)",
        "%add_tensor = aten.add.Tensor(%snapshot_default, 1e-05)",
        "%sqrt_default = aten.sqrt.default(%add_tensor)",
        "%div_tensor = aten.div.Tensor(%_1_weight, %sqrt_default)",
        "%eq_scalar = aten.eq.Scalar(%div_tensor, 0)",
        "%masked_fill_scalar = aten.masked_fill.Scalar(%div_tensor, %eq_scalar, 1)",
        "%reshape_default = aten.reshape.default(%masked_fill_scalar, [-1, 1])",
        "%mul_tensor = aten.mul.Tensor(%_0_weight, %reshape_default)",
        "%activation_post_process_1 = activation_post_process_1(%mul_tensor)",
        "%linear = aten.linear.default(%activation_post_process_0, %activation_post_process_1, "
        "None)",
        "%add_ = aten.add_.Tensor(%_1_num_batches_tracked, 1)",
        "%reshape_default_1 = aten.reshape.default(%masked_fill_scalar, [1, -1])",
        "%div_tensor_1 = aten.div.Tensor(%linear, %reshape_default_1)",
        "%reshape_default_2 = aten.reshape.default(%_0_bias, [1, -1])",
        "%add_tensor_1 = aten.add.Tensor(%div_tensor_1, %reshape_default_2)",
        "%batch_norm = aten.batch_norm.default(%add_tensor_1, %_1_weight, %_1_bias, "
        "%_1_running_mean, %_1_running_var, True, 0.1, 1e-05, False)",
        "%activation_post_process_2 = activation_post_process_2(%batch_norm)",
        "return [%activation_post_process_2]",
    ]
