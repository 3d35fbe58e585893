"""Networks in which one thing is wrong, the algorithm that mends it, and the call for all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.planted import FeedForward, TwoLinears, UnequalConvolutions, correlated
from torch import Tensor, nn

from pt2q import Quantizer, convert_pt2e, prepare_pt2e, sqnr
from pt2q.algorithms import (
    AWQ,
    GPTQ,
    AdaRound,
    BiasCorrection,
    CrossLayerEqualization,
    ScaleSearch,
    SmoothQuant,
    quantize_pt2e,
    report_of,
)
from pt2q.algorithms.model_error import ModelError, is_less
from pt2q.errors import DataError
from pt2q.quantizers import (
    WeightQuantizer,
    X86InductorQuantizer,
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
    get_weight_only_quantization_config,
)

EVERY = [
    CrossLayerEqualization(),
    SmoothQuant(),
    AWQ(),
    ScaleSearch(),
    GPTQ(aligned=True, sweeps=1),
    AdaRound(steps=10),
    BiasCorrection(),
]


def decibels(
    model: nn.Module, quantizer: Quantizer, batches: list[Any], **options: Any
) -> tuple[float, Any]:
    """The quality on the last batch, which the others do not hold."""
    program = torch.export.export(model.eval(), batches[0])
    state = {name: value.clone() for name, value in program.state_dict.items()}
    converted = quantize_pt2e(program, quantizer, batches[:-1], **options)
    assert all(torch.equal(state[name], value) for name, value in program.state_dict.items())
    with torch.no_grad():
        wanted = program.module()(*batches[-1])
        return float(sqnr(wanted, converted(*batches[-1]))), converted


@pytest.mark.parametrize("quantizer", [XNNPACKQuantizer, X86InductorQuantizer])
def test_smooth_quant_on_three_large_channels(quantizer: type[Quantizer]) -> None:
    batches = [(torch.randn(32, 64),) for _ in range(9)]
    model = FeedForward()
    before, _ = decibels(model, quantizer(), batches)
    after, converted = decibels(model, quantizer(), batches, algorithms=[SmoothQuant()])
    assert before < 20
    assert after > 33
    assert any(row.kept for row in report_of(converted).rows)


def test_equalization_of_unequal_convolutions() -> None:
    batches = [(torch.randn(2, 8, 12, 12),) for _ in range(9)]
    model = UnequalConvolutions()
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config())
    before, _ = decibels(model, quantizer, batches)
    after, _ = decibels(model, quantizer, batches, algorithms=[CrossLayerEqualization()])
    assert before < 15
    assert after > 30


@pytest.mark.parametrize("algorithm", [GPTQ(), AdaRound(steps=100)], ids=["gptq", "adaround"])
def test_four_bits_on_correlated_inputs(algorithm: Any) -> None:
    batches = correlated(9, width=64, rank=8)
    model = TwoLinears(64)
    quantizer = WeightQuantizer(get_weight_only_quantization_config(4))
    before, _ = decibels(model, quantizer, batches)
    after, converted = decibels(model, quantizer, batches, algorithms=[algorithm])
    assert after > before + 3
    again, _ = decibels(model, quantizer, batches, algorithms=[algorithm])
    assert again == after
    assert {row.kept for row in report_of(converted).rows} == {True}


def test_a_bias_takes_back_what_rounding_shifts() -> None:
    batches = [(torch.rand(64, 32) + 1,) for _ in range(9)]
    model = nn.Linear(32, 16, bias=False)
    quantizer = WeightQuantizer(get_weight_only_quantization_config(4))
    before, _ = decibels(model, quantizer, batches)
    after, _ = decibels(model, quantizer, batches, algorithms=[BiasCorrection()])
    assert after > before + 3


def test_algorithms_never_make_it_worse() -> None:
    batches = [(torch.randn(16, 64),) for _ in range(9)]
    model = TwoLinears(64)
    before, _ = decibels(model, XNNPACKQuantizer(), batches)
    after, _ = decibels(model, XNNPACKQuantizer(), batches, effort="best")
    assert after > before - 0.5


def test_batches_that_are_none() -> None:
    program = torch.export.export(TwoLinears(8).eval(), (torch.randn(2, 8),))
    with pytest.raises(DataError):
        quantize_pt2e(program, XNNPACKQuantizer(), [])


def test_batches_may_be_tensors_tuples_and_dicts_read_once() -> None:
    program = torch.export.export(TwoLinears(8).eval(), (torch.randn(2, 8),))
    data = [torch.randn(2, 8) for _ in range(5)]
    forms: list[Any] = [data, [(x,) for x in data], [{"input": x} for x in data], iter(data)]
    codes = []
    for batches in forms:
        converted = quantize_pt2e(program, XNNPACKQuantizer(), batches, algorithms=[SmoothQuant()])
        codes.append(converted(data[0]))
    assert all(torch.equal(codes[0], other) for other in codes[1:])


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_batches_of_several_sizes(kind: str) -> None:
    """Sequences of several lengths, as sentences have that nobody has filled up."""
    conv = nn.Sequential(nn.Conv1d(32, 16, 3), nn.ReLU(), nn.Conv1d(16, 8, 3))
    dense = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16))
    model, axis = (conv.eval(), 2) if kind == "conv" else (dense.eval(), 1)
    with torch.no_grad():
        model[0].weight[3] *= 40  # type: ignore[operator, index]
        model[2 if kind == "conv" else 1].weight[:, 3] /= 40  # type: ignore[operator, index]
    sizes = [9, 13, 9, 11, 16, 9, 10, 16]
    batches = [(torch.randn(2, 32, n) if axis == 2 else torch.randn(2, n, 32),) for n in sizes]
    length = torch.export.Dim("n", min=6, max=64)
    program = torch.export.export(model, batches[0], dynamic_shapes=({axis: length},))
    converted = quantize_pt2e(program, XNNPACKQuantizer(), batches, algorithms=EVERY)
    assert any(row.kept for row in report_of(converted).rows)
    with torch.no_grad():
        for batch in batches:
            assert sqnr(model(*batch), converted(*batch)) > 15


def test_a_gain_that_one_batch_shows_is_none() -> None:
    assert is_less([1.0] * 4, [0.8] * 4)
    assert not is_less([1.0] * 2, [0.9] * 2) and is_less([1.0] * 4, [0.9] * 4)
    assert is_less([1.0, 2.0, 3.0], [0.7, 1.5, 2.3])
    assert not is_less([1.0] * 4, [0.5, 1.1, 1.1, 1.1])
    assert not is_less([1.0, 2.0], [1.0, 2.0])
    assert is_less([1.0], [0.7]) and not is_less([1.0], [1.0])
    assert is_less([1.0], [0.0]) and not is_less([0.0], [0.0])
    assert not is_less([1.0, 1.0], [0.5, float("nan")]) and is_less([float("nan")], [1.0])


def test_rows_of_a_single_batch_judge_apart() -> None:
    """A quarter of its rows; where outputs have no such rows, the batch as one."""
    network = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 8)).eval()
    batch = (torch.randn(32, 32),)
    prepared = prepare_pt2e(torch.export.export(network, batch), XNNPACKQuantizer())
    prepared(*batch)
    judge = ModelError(prepared, [batch])
    errors = judge.of(prepared)
    converted = convert_pt2e(prepared)
    with torch.no_grad():
        exact, found = network(*batch)[24:], converted(*batch)[24:]
    wanted = (exact - found).double().square().sum(1) / exact.double().square().sum()
    assert len(errors) == 8
    torch.testing.assert_close(torch.tensor(errors).double(), wanted, rtol=1e-4, atol=0)


class Loss(nn.Module):
    """Gives its rows, and one number for all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found = self.layer(x)
        return found, found.mean()


def test_outputs_of_a_single_batch_may_have_no_rows() -> None:
    batch = (torch.randn(16, 8),)
    program = torch.export.export(Loss().eval(), batch)
    converted = quantize_pt2e(program, XNNPACKQuantizer(), [batch], effort="fast")
    assert report_of(converted).rows
    prepared = prepare_pt2e(program, XNNPACKQuantizer())
    prepared(*batch)
    judge = ModelError(prepared, [batch])
    assert len(judge.of(prepared)) == 1 and judge.where == "held-out batches"
    alone = torch.export.export(Loss().eval(), (batch[0][:1],))
    assert ModelError(prepare_pt2e(alone, XNNPACKQuantizer()), [(batch[0][:1],)]).where == (
        "the only batch"
    )
