"""Where channels go, and what moving factors between layers wins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.nets import NETS
from support.planted import FeedForward, UnequalConvolutions, calibrated, quality
from support.results import assert_same
from support.small_quantizers import DYNAMIC, SmallQuantizer
from torch import Tensor, nn

from pt2q import Quantizer, convert_pt2e, prepare_pt2e, verify
from pt2q.algorithms import AWQ, CrossLayerEqualization, SmoothQuant
from pt2q.algorithms.engine import Program
from pt2q.algorithms.layers import find_layers
from pt2q.algorithms.layerwise import Declined
from pt2q.algorithms.sites import Sites
from pt2q.ir import ops
from pt2q.quantizers import (
    OnnxQDQQuantizer,
    WeightQuantizer,
    X86InductorQuantizer,
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
    get_weight_only_quantization_config,
)

# ------------------------------------------------------------------ where channels go


def reached(
    network: nn.Module, inputs: tuple[Any, ...], quantizer: Quantizer | None = None
) -> dict[str, str]:
    """For each norm and layer the layers that could take its factors, or the reason."""
    program = torch.export.export(network.eval(), inputs)
    prepared = prepare_pt2e(program, quantizer or XNNPACKQuantizer())
    program = Program(prepared)
    finder = Sites(program, find_layers(program))
    found = {}
    for node in program.schedule.nodes:
        source = finder.source(node)
        if source is not None:
            try:
                found[node.name] = finder.site(source).name
            except Declined as reason:
                found[node.name] = str(reason)
    return found


def test_a_vision_transformer_hands_channels_on_through_attention() -> None:
    net = NETS["small_vit"]
    found = reached(net.build(), net.inputs(2))
    assert found["layer_norm"] == "linear, linear_1, linear_2"
    assert found["linear_2"] == "linear_3"  # from the values through attention to the output
    assert found["layer_norm_1"] == "linear_4"
    assert found["linear"] == "its channels are also read by matmul"  # queries meet keys


def test_what_goes_into_a_sum_stays() -> None:
    net = NETS["small_bert"]
    found = reached(net.build(), net.inputs(2))
    assert "also read by add" in found["layer_norm"]
    assert found["layer_norm_4"] == "linear_12"


class Moves(nn.Module):
    """Channels are flattened, split, sliced, joined and multiplied on their way."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8 * 4, 6)
        self.fused, self.out = nn.Linear(6, 24), nn.Linear(12, 4)
        self.join = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pooled = torch.nn.functional.adaptive_avg_pool2d(self.conv(x).relu(), 2)
        y = self.head(pooled.flatten(1))
        gate, up = self.fused(y).chunk(2, dim=-1)
        z = self.out(torch.sigmoid(gate) * up)
        return z, self.join(torch.cat([up, z], dim=-1))


class Twice(nn.Module):
    """A norm and a layer that are called on two values each."""

    def __init__(self, meet: str) -> None:
        super().__init__()
        self.meet = meet
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 4)
        self.other = nn.Linear(8, 16)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        one, two = self.norm(x), self.norm(y)
        if self.meet == "product":  # takes the factor out twice
            one = one * two
        if self.meet == "chain":  # what is normalized is not what was scaled
            two = self.norm(one)
        second = self.other if self.meet == "apart" else self.up
        return self.down(self.up(one).relu()), self.down(second(two).relu())


@pytest.mark.parametrize(
    "meet, wanted",
    [
        ("", {"layer_norm": "linear", "linear": "linear_1"}),
        ("apart", {"layer_norm": "linear, linear_2"}),
        ("product", {"layer_norm": "also read by mul"}),
        ("chain", {"layer_norm": "also read by layer_norm_2"}),
    ],
)
def test_what_is_called_on_several_values_is_scaled_for_all(
    meet: str, wanted: dict[str, str]
) -> None:
    found = reached(Twice(meet), (torch.randn(2, 8), torch.randn(2, 8)), WeightQuantizer())
    for name, words in wanted.items():
        assert words == found[name] or ("also" in words and words in found[name])
    assert "layer_norm_1" not in found


def test_channels_are_followed_through_what_moves_them() -> None:
    inputs = (torch.randn(2, 3, 8, 8),)
    assert "shares its parameters" in reached(Moves(), inputs)["linear_1"]  # what is joined does
    found = reached(Moves(), inputs, WeightQuantizer())
    assert found["conv2d"] == "linear"
    # The gate's half goes through a sigmoid, the other through a product and a join.
    assert found["linear_1"] == "linear_2, linear_3"


def test_factors_keep_the_function() -> None:
    network, batches = Moves().eval(), [(torch.randn(2, 3, 8, 8),) for _ in range(4)]
    with torch.no_grad():
        network.conv.weight[::2] *= 30
        network.fused.weight[:, 1] *= 20
    prepared = calibrated(network, XNNPACKQuantizer(), batches)
    before = [network(*batch) for batch in batches]
    report = SmoothQuant(strengths=(0.5,), insert_from=-100.0)(prepared, batches)
    assert any(row.kept for row in report.rows)
    assert_same([prepared(*batch) for batch in batches], before, 1e-4)
    assert_same([network(*batch) for batch in batches], before)


# ------------------------------------------------------------------ SmoothQuant

QUANTIZERS: list[Callable[[], Quantizer]] = [
    XNNPACKQuantizer,
    OnnxQDQQuantizer.onnxruntime,
    X86InductorQuantizer,
]


def sequences(count: int) -> list[Any]:
    return [(torch.randn(16, 8, 64),) for _ in range(count)]


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_smooth_quant_on_three_large_channels(quantizer: Callable[[], Quantizer]) -> None:
    network, batches, held = FeedForward(), sequences(8), sequences(3)
    prepared = calibrated(network, quantizer(), batches)
    assert quality(network, prepared, held) < 13
    report = SmoothQuant()(prepared, batches)
    assert quality(network, prepared, held) >= 34.4
    by_layer = {row.layer: row for row in report.rows}
    assert by_layer["linear"].kept and by_layer["linear"].reason.split()[0] in ("strength", "limit")
    assert not [n for n in prepared.graph.nodes if ops.is_op(n, ops.MUL)]  # the norm took it


class AddmmFeedForward(FeedForward):
    """The same as `addmm` on rows, as GPT-2 writes its layers."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x).flatten(0, 1)
        for layer in (self.up, self.down):
            y = torch.addmm(layer.bias, y, layer.weight.t())
            y = nn.functional.gelu(y) if layer is self.up else y
        return y.unflatten(0, x.shape[:2])


def test_smooth_quant_through_addmm() -> None:
    network, batches, held = AddmmFeedForward(), sequences(8), sequences(3)
    prepared = calibrated(network, XNNPACKQuantizer(), batches)
    assert quality(network, prepared, held) < 13
    report = SmoothQuant()(prepared, batches)
    assert next(row.kept for row in report.rows if row.layer.startswith("addmm"))
    assert quality(network, prepared, held) >= 34.4


def test_smooth_quant_with_dynamic_inputs() -> None:
    network, batches = FeedForward(), sequences(8)
    prepared = calibrated(network, SmallQuantizer(DYNAMIC), batches)
    before = quality(network, prepared, batches)
    SmoothQuant()(prepared, batches)
    assert quality(network, prepared, batches) > before + 15


def test_a_single_batch_is_parted_for_ranges_too() -> None:
    """What judges is not what ranges were found on: rows of one batch, or nothing is said."""
    network = FeedForward()
    for rows, words in ((16, "held-out"), (1, "only batch")):
        batches = [(torch.randn(rows, 8, 64),)]
        prepared = calibrated(network, XNNPACKQuantizer(), batches)
        report = SmoothQuant()(prepared, batches)
        assert report.rows and all(words in row.reason for row in report.rows)


class Shared(nn.Module):
    """What is uneven is read by a sum as well."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = FeedForward()

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner.norm(x)
        return self.inner.down(torch.nn.functional.gelu(self.inner.up(h))) + 0.01 * h


def test_a_multiplication_is_written_where_nothing_takes_the_factor() -> None:
    network, batches = Shared().eval(), sequences(8)
    prepared = calibrated(network, XNNPACKQuantizer(), batches)
    before = quality(network, prepared, batches)
    report = SmoothQuant()(prepared, batches)
    products = [n for n in prepared.graph.nodes if n.target is torch.ops.aten.mul.Tensor]
    assert any("by a multiplication" in row.reason and row.kept for row in report.rows)
    assert len(products) == 2  # its own, and that of the model
    converted = convert_pt2e(prepared)
    verify(converted).raise_if_broken()
    assert quality(network, prepared, batches) > before + 3
    exported = torch.export.export(converted, batches[0])
    assert_same(exported.module()(*batches[0]), converted(*batches[0]))


def test_nothing_is_left_of_a_multiplication_that_does_not_pay() -> None:
    network, batches = Shared().eval(), sequences(4)
    prepared = calibrated(network, XNNPACKQuantizer(), batches)
    code, keys = prepared.code, set(prepared.state_dict())
    SmoothQuant(insert_from=200.0)(prepared, batches)
    assert prepared.code == code and set(prepared.state_dict()) == keys


def test_weights_alone_are_passed_over_by_smooth_quant() -> None:
    network, batches = FeedForward(), sequences(4)
    prepared = calibrated(network, WeightQuantizer(), batches)
    report = SmoothQuant()(prepared, batches)
    assert report.rows == ()
    assert {item.reason for _, item in report.passed} == {"its input is not quantized"}


# ------------------------------------------------------------------ equalization


def images(count: int) -> list[Any]:
    return [(torch.randn(4, 8, 12, 12),) for _ in range(count)]


def per_tensor() -> Quantizer:
    config = get_symmetric_quantization_config(is_per_channel=False)
    return XNNPACKQuantizer().set_global(config)


def test_equalization_of_convolutions() -> None:
    """As good as if the channels had never been apart."""
    results = []
    for spread in (1.0, 300.0):
        torch.manual_seed(0)
        network, batches, held = UnequalConvolutions(spread), images(8), images(3)
        prepared = calibrated(network, per_tensor(), batches)
        plain = quality(network, prepared, held)
        report = CrossLayerEqualization()(prepared, batches)
        results.append((plain, quality(network, prepared, held)))
        assert len(report.rows) == 2
    (even, _), (apart, mended) = results
    assert apart < 9 and mended > apart + 31
    assert mended > even - 0.1


def test_equalization_through_depthwise_convolutions_and_linears() -> None:
    network = nn.Sequential(
        nn.Conv2d(4, 8, 1),
        nn.LeakyReLU(0.1),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 6, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 16, 5),
    )
    factor = torch.logspace(-1, 1, 8)
    with torch.no_grad():
        network[0].weight *= factor[:, None, None, None]
        network[0].bias *= factor
        network[2].weight /= factor[:, None, None, None]
    batches = [(torch.randn(4, 4, 8, 8),) for _ in range(8)]
    prepared = calibrated(network, per_tensor(), batches)
    before = quality(network, prepared, batches)
    report = CrossLayerEqualization()(prepared, batches)
    assert {row.layer for row in report.rows if row.kept} >= {"conv2d_1"}
    assert {row.layer for row in report.rows} == {"conv2d_1", "conv2d_2", "linear"}
    assert quality(network, prepared, batches) > before + 10


def lifted() -> nn.Sequential:
    """Half of the channels between two layers never come near zero."""
    network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    with torch.no_grad():
        network[0].weight.clamp_(-0.3, 0.3)
        network[0].bias[::2] += 40.0
    return network


def test_biases_are_absorbed() -> None:
    network, batches = lifted(), [(torch.rand(16, 8),) for _ in range(8)]
    exact = [network(*batch) for batch in batches]
    prepared = calibrated(network, XNNPACKQuantizer(), batches)
    report = CrossLayerEqualization()(prepared, batches)
    (row,) = [row for row in report.rows if row.algorithm == "bias_absorption"]
    assert row.kept and row.layer == "linear_1" and "8 bias(es) moved" in row.reason
    assert float(prepared.get_parameter("0.bias")[::2].max()) < 5
    assert row.after > row.before + 10
    assert_same([prepared(*batch) for batch in batches], exact, 1e-2)


def test_what_absorbs_no_bias_has_a_reason() -> None:
    network, batches = lifted(), [(torch.rand(16, 8),) for _ in range(4)]
    network[1] = nn.LeakyReLU()
    prepared = calibrated(network, XNNPACKQuantizer(), batches)
    report = CrossLayerEqualization()(prepared, batches)
    assert "does not hand a bias on" in str(report)


# ------------------------------------------------------------------ AWQ


def test_awq_on_uneven_channels() -> None:
    network, batches, held = FeedForward(factor=8.0), sequences(8), sequences(3)
    config = get_weight_only_quantization_config(4, 32)
    prepared = calibrated(network, WeightQuantizer(config), batches)
    before = quality(network, prepared, held)
    report = AWQ()(prepared, batches)
    assert any(row.kept for row in report.rows)
    assert quality(network, prepared, held) > before + 2


@pytest.mark.parametrize("algorithm", [SmoothQuant(), CrossLayerEqualization(), AWQ()])
def test_the_same_result_twice_also_from_files(algorithm: Any) -> None:
    network, batches = FeedForward(), sequences(4)
    found = []
    for spill in (False, True):
        prepared = calibrated(network, XNNPACKQuantizer(), batches)
        algorithm(prepared, batches, spill=spill)
        found.append(convert_pt2e(prepared).state_dict())
    assert_same(found[0], found[1])
