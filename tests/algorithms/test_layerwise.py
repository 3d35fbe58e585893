"""GPTQ and the search of scales: what they win, on which layers, and what they leave alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.few_bits import few_bits, weights_alone
from support.planted import TwoLinears, calibrated, correlated, quality
from support.results import assert_same
from support.small_quantizers import weight_per_channel
from torch import Tensor, nn

from pt2q import QuantizationSpec, convert_pt2e, prepare_pt2e
from pt2q.algorithms import GPTQ, ScaleSearch
from pt2q.algorithms.layerwise import LayerAlgorithm
from pt2q.algorithms.model_error import ModelError, is_less
from pt2q.algorithms.scale_search import best_scales
from pt2q.observers import PerChannelMinMaxObserver
from pt2q.quantizers import WeightQuantizer, get_weight_only_quantization_config

ALGORITHMS = [GPTQ(), ScaleSearch()]


class Multiplies(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.weight, self.bias = nn.Parameter(torch.randn(16, 8)), nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "addmm":
            return torch.addmm(self.bias, x, self.weight)
        return torch.mm(x, self.weight) if self.kind == "mm" else x @ self.weight


class Twice(nn.Module):
    """One linear called twice, and its weight a third time under another name."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.tied = nn.Linear(16, 16), nn.Linear(16, 16)
        self.tied.weight = self.linear.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.tied(self.linear(self.linear(x).relu()).relu())


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "linear": (lambda: nn.Linear(16, 8), (16, 16), 0),
    "conv1d": (lambda: nn.Conv1d(6, 8, 3, padding=1), (4, 6, 12), 0),
    "conv2d": (lambda: nn.Conv2d(6, 8, 3, stride=2), (4, 6, 9, 9), 0),
    "grouped": (lambda: nn.Conv2d(6, 8, 3, groups=2), (4, 6, 9, 9), 0),
    "depthwise": (lambda: nn.Conv2d(6, 6, 3, groups=6), (4, 6, 9, 9), 0),
    "conv3d": (lambda: nn.Conv3d(3, 4, 3), (2, 3, 5, 6, 5), 0),
    "transposed1d": (lambda: nn.ConvTranspose1d(6, 8, 3, stride=2), (4, 6, 12), 1),
    "transposed2d": (
        lambda: nn.ConvTranspose2d(6, 8, 3, stride=2, output_padding=1),
        (4, 6, 7, 7),
        1,
    ),
    "transposed3d": (lambda: nn.ConvTranspose3d(3, 4, 3, stride=2), (2, 3, 4, 4, 4), 1),
    "addmm": (lambda: Multiplies("addmm"), (16, 16), 1),
    "mm": (lambda: Multiplies("mm"), (16, 16), 1),
    "matmul": (lambda: Multiplies("matmul"), (2, 8, 16), 1),
    "twice": (lambda: Twice(), (16, 16), 0),
}


def correlated_like(shape: tuple[int, ...], channels: int, count: int) -> list[Any]:
    """Inputs whose channels go together, and whose neighbours do in space."""
    size = shape[channels]
    mix = torch.randn(size, size) * torch.logspace(0.5, -1, size)
    made = []
    for _ in range(count):
        x = (torch.randn(shape).movedim(channels, -1) @ mix.t()).movedim(-1, channels)
        for dim in range(2, len(shape)) if channels == 1 else ():
            x = x + x.roll(1, dim)
        made.append((x.contiguous(),))
    return made


@pytest.mark.parametrize(
    ("name", "bits"), [(name, 4) for name in LAYERS] + [("linear", b) for b in (2, 3, 8)]
)
def test_every_kind_of_layer(name: str, bits: int) -> None:
    make, shape, axis = LAYERS[name]
    network = make().eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    last = name in ("linear", "twice", "addmm", "mm", "matmul")
    batches = correlated_like(shape, -1 if last else 1, 12)
    prepared = calibrated(network, weights_alone(few_bits(bits, axis=axis)), batches)
    plain = quality(network, prepared, batches)
    report = GPTQ()(prepared, batches)
    assert [row.kept for row in report.rows] == [True]
    assert report.passed == ()
    gain = report.rows[0].after - report.rows[0].before
    assert gain > 1.0
    # Where a weight has several calls, those between are not judged one by one: less error of each
    # call need not be less at the end, which `quantize_pt2e` judges.
    assert quality(network, prepared, batches) > plain + (-0.5 if name == "twice" else 0.5 * gain)
    assert_same(network.state_dict(), before)


@pytest.mark.parametrize("scheme", ["tensor", "channel", "affine"])
@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: a.name)
def test_every_scheme(scheme: str, algorithm: LayerAlgorithm) -> None:
    network, batches = TwoLinears(64).eval(), correlated(8, width=64, rank=16)
    with torch.no_grad():  # every row has a weight that is not worth its range
        network[0].weight[:, 5] *= 3
        network[2].weight[:, 5] *= 3
    prepared = calibrated(network, weights_alone(few_bits(3, scheme)), batches)
    plain = quality(network, prepared, batches)
    report = algorithm(prepared, batches)
    assert any(row.kept for row in report.rows)
    assert quality(network, prepared, batches) > plain + 0.5


@pytest.mark.parametrize(("group_size", "least"), [(None, 26.9), (32, 26.3)])
def test_gptq_on_correlated_inputs(group_size: int | None, least: float) -> None:
    network, batches = TwoLinears().eval(), correlated(20)
    config = get_weight_only_quantization_config(4, group_size)
    prepared = calibrated(network, WeightQuantizer(config), batches[:16])
    plain = quality(network, prepared, batches[16:])
    assert 19 < plain < 22
    GPTQ()(prepared, batches[:16])
    assert quality(network, prepared, batches[16:]) >= max(least, plain + 7)


def test_what_is_converted_is_what_was_chosen() -> None:
    network, batches = TwoLinears(64).eval(), correlated(8, width=64)
    prepared = calibrated(network, weights_alone(few_bits(4)), batches)
    report = GPTQ()(prepared, batches)
    assert all(row.kept for row in report.rows)
    chosen = [prepared.get_parameter(f"{i}.weight").detach() for i in ("0", "2")]
    converted = convert_pt2e(prepared)
    stored = [b for b in converted.buffers() if b.dtype == torch.int8]
    scales = [b for n, b in converted.named_buffers() if n.endswith("scale")]
    for weight, integers, scale in zip(chosen, stored, scales, strict=True):
        assert torch.equal(integers.float() * scale[:, None], weight)


def test_a_weight_with_several_calls_stays_one_tensor() -> None:
    network, batches = Twice().eval(), correlated(8, width=16, rank=4)
    prepared = calibrated(network, weights_alone(few_bits(4)), batches)
    GPTQ()(prepared, batches)
    assert prepared.linear.weight is prepared.tied.weight
    converted = convert_pt2e(prepared)
    assert sum(b.dtype == torch.int8 for b in converted.buffers()) == 1


class Shares(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(12, 16), nn.Linear(16, 12, bias=False)
        self.head.weight = self.table.weight
        self.computed = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.table(x) @ (self.computed.weight * 2.0).t())


def test_what_is_passed_over_has_a_reason() -> None:
    batches = [(torch.randint(12, (4, 5)),) for _ in range(4)]
    prepared = calibrated(Shares(), weights_alone(few_bits(4)), batches)
    report = GPTQ()(prepared, batches)
    reasons = {item.name: item.reason for _, item in report.passed}
    assert report.rows == ()
    assert "also read by embedding" in reasons["linear"]
    assert any("computed in the graph" in reason for reason in reasons.values())


def test_a_single_batch_is_parted() -> None:
    network, batches = nn.Linear(64, 16).eval(), correlated(1, width=64)
    prepared = calibrated(network, weights_alone(few_bits(3)), batches)
    (row,) = GPTQ()(prepared, batches).rows
    assert row.kept and "held-out" in row.reason


def test_a_change_that_does_not_help_is_not_made() -> None:
    """Weights that lie on their grid already cannot be rounded better."""
    network = nn.Linear(16, 8, bias=False).eval()
    with torch.no_grad():
        network.weight.copy_(torch.randint(-7, 8, (8, 16)).float())
        network.weight[:, 0] = 7.5
        network.weight[:, 0] = torch.where(torch.arange(8) % 2 == 0, 7.0, -7.0)
    spec = QuantizationSpec(
        torch.int8, PerChannelMinMaxObserver, -7, 7, torch.per_channel_symmetric, ch_axis=0
    )
    batches = correlated(4, width=16)
    prepared = calibrated(network, weights_alone(spec), batches)
    for algorithm in ALGORITHMS:
        (row,) = algorithm(prepared, batches).rows
        assert not row.kept and row.before == float("inf")
    assert prepared.weight is network.weight


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: a.name)
def test_the_same_result_twice(algorithm: LayerAlgorithm) -> None:
    network, batches = TwoLinears(64).eval(), correlated(8, width=64)
    found = []
    for spill in (False, True):
        prepared = calibrated(network, weights_alone(few_bits(3)), batches)
        algorithm(prepared, batches, spill=spill)
        found.append(convert_pt2e(prepared).state_dict())
    assert found[0].keys() == found[1].keys()
    assert_same(found[0], found[1])


def test_scales_are_the_best_of_those_tried() -> None:
    """Against one scale after the other, by hand."""
    weight, importance = torch.randn(4, 12), torch.rand(12)
    prepared = prepare_pt2e(
        torch.export.export(nn.Linear(12, 4), (torch.randn(2, 12),)), weights_alone(few_bits(3))
    )
    from pt2q.algorithms.engine.rounding import grid_of

    observer = next(m for m in prepared.modules() if hasattr(m, "calculate_qparams"))
    observer.reset()
    observer(weight)
    grid = grid_of(observer, 2)
    found = best_scales(weight, lambda e: e.square() * importance, grid, steps=8, least=0.3)
    for row in range(4):
        errors = []
        for factor in torch.linspace(1.0, 0.3, 8).tolist():
            scale = float(grid.scale[row]) * factor
            q = (weight[row] / scale).round().clamp(-4, 3)
            errors.append((float(((q * scale - weight[row]).square() * importance).sum()), scale))
        assert float(found.scale[row]) == pytest.approx(min(errors)[1], rel=1e-6)


def test_int8_per_channel_weights_of_ours_are_layers_too() -> None:
    network, batches = TwoLinears(64).eval(), correlated(8, width=64)
    prepared = calibrated(network, weights_alone(weight_per_channel(0)), batches)
    assert len(GPTQ()(prepared, batches).rows) == 2


def test_gptq_goes_both_ways_and_keeps_what_the_outputs_say() -> None:
    """Where inputs are many, to make up for the layer before wins."""
    chosen = []
    for rows in (64, 2):
        network, batches = TwoLinears(32).eval(), correlated(12, rows=rows, width=32, rank=8)
        states, errors = [], []
        for algorithm in (GPTQ(both_ways=False), GPTQ(aligned=True, sweeps=2), GPTQ()):
            prepared = calibrated(network, weights_alone(few_bits(3)), batches)
            judge = ModelError(prepared, batches)
            algorithm(prepared, batches)
            errors.append(judge.of(prepared))
            states.append(prepared.state_dict())
        better = int(is_less(*errors[:2]))
        assert errors[2] == errors[better]
        assert_same(states[2], states[better])
        chosen.append(better)
    assert chosen[0] == 1
