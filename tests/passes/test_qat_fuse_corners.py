"""Corners of fusing batch norms: dead channels, shared weights, moved edges."""

from __future__ import annotations

import pytest
import torch
from support.nodes import count
from support.qat_layers import CONFIGS, batch, build, check_fold, train_together
from support.qat_quantizer import ACTIVATION, PER_TENSOR, QATQuantizer, per_channel, prepare
from torch import nn

import pt2q
from pt2q.errors import BatchNormNotFoldedWarning
from pt2q.passes.batch_norm.qat_record import fused_pairs


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
    from pt2q.spec import QUANT_ANNOTATION_KEY, SharedQuantizationSpec

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
    text = dump(prepare(model, batch("linear"), quantizer=quantizer, fast=False))
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
