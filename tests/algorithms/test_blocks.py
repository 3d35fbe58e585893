"""AdaRound for several layers at once: where blocks end, and what learning them together wins."""

from __future__ import annotations

import pytest
import torch
from support.few_bits import few_bits, weights_alone
from support.planted import calibrated, correlated, quality
from support.results import assert_same
from support.small_quantizers import SmallQuantizer
from torch import Tensor, nn

from pt2q import convert_pt2e
from pt2q.algorithms import AdaRound
from pt2q.algorithms.blocks import find_blocks
from pt2q.algorithms.engine import Program
from pt2q.algorithms.layers import find_layers
from pt2q.demo.digits import load_digits
from pt2q.demo.net import CHECKPOINT, DigitNet, load_checkpoint


class Residual(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.out = nn.Linear(width, 16)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(x)
        y: Tensor = self.out(h + self.down(self.up(h).relu()))
        return y


def test_blocks_end_where_one_value_goes_on() -> None:
    network, batches = Residual().eval(), correlated(2, rows=8, width=32)
    prepared = calibrated(network, weights_alone(few_bits(4)), batches)
    program = Program(prepared)
    layers = find_layers(program).found
    for most, expected in (
        (1, [("linear", "relu"), ("linear_1", "add"), ("linear_2", "linear_2")]),
        (2, [("linear, linear_1", "add"), ("linear_2", "linear_2")]),
        (3, [("linear, linear_1, linear_2", "linear_2")]),
    ):
        blocks = find_blocks(program, layers, most)
        assert [(block.name, block.end.name) for block in blocks] == expected


class Unread(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.one, self.unread, self.out = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.one(x)
        self.unread(h)
        y: Tensor = self.out(h)
        return y


def test_a_value_from_before_a_layer_does_not_end_its_block() -> None:
    network, batches = Unread().eval(), correlated(4, rows=8, width=32)
    prepared = calibrated(network, SmallQuantizer(), batches)
    program = Program(prepared)
    blocks = find_blocks(program, find_layers(program).found, 1)
    assert [block.name for block in blocks] == ["linear", "linear_1, linear_2"]
    together = find_blocks(program, find_layers(program).found, 2)
    report = AdaRound(block=2, steps=5)(prepared, batches)
    assert [row.layer for row in report.rows] == [block.name for block in together]


def test_layers_learned_together() -> None:
    network, batches = Residual().eval(), correlated(8, rows=32, width=32, rank=8)
    prepared = calibrated(network, weights_alone(few_bits(3)), batches)
    plain = quality(network, prepared, batches)
    report = AdaRound(block=2, steps=250)(prepared, batches)
    assert [(row.layer, row.kept) for row in report.rows] == [
        ("linear, linear_1", True),
        ("linear_2", True),
    ]
    assert quality(network, prepared, batches) > plain + 1
    stored = [b for b in convert_pt2e(prepared).buffers() if b.dtype == torch.int8]
    assert all(int(x.max()) <= 3 and int(x.min()) >= -4 for x in stored)


def test_scales_and_biases_are_learned_too() -> None:
    network, batches = Residual().eval(), correlated(8, rows=32, width=32, rank=8)
    for others in (0.0, 1e-3):
        prepared = calibrated(network, weights_alone(few_bits(2)), batches)
        plain = quality(network, prepared, batches)
        (row,) = AdaRound(block=3, steps=150, others=others)(prepared, batches).rows
        assert row.kept and quality(network, prepared, batches) > plain + 1
        bias = dict(prepared.named_parameters())["up.bias"]
        assert torch.equal(bias, network.up.bias) == (others == 0)


def test_gradients_pass_the_rounding_of_activations() -> None:
    network, batches = Residual().eval(), correlated(8, rows=32, width=32, rank=8)
    found = []
    for _ in range(2):
        prepared = calibrated(network, SmallQuantizer(), batches)
        report = AdaRound(block=4, steps=40)(prepared, batches, seed=2)
        assert report.rows
        found.append(convert_pt2e(prepared).state_dict())
    assert_same(found[0], found[1])


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.other(self.one(self.one(x).relu()).relu())
        return y


def test_what_cannot_be_learned_together_is_passed_over() -> None:
    network, batches = Twice().eval(), correlated(4, rows=8, width=16)
    prepared = calibrated(network, weights_alone(few_bits(4)), batches)
    report = AdaRound(block=2, steps=5)(prepared, batches)
    assert {item.name: item.reason for _, item in report.passed} == {
        "linear": "it is called several times"
    }


@pytest.mark.slow
def test_digits_with_two_bits_from_images_alone() -> None:
    """Labels are not asked for; plain rounding is right about every fifth image."""
    net, data = load_checkpoint(CHECKPOINT, DigitNet), load_digits()
    batches = [(part,) for part in data.train[:240].split(16)]
    prepared = calibrated(net, weights_alone(few_bits(2)), batches)
    AdaRound(block=4, steps=200)(prepared, batches)
    converted, held = convert_pt2e(prepared), data.held_out[:448]
    with torch.no_grad():
        guesses = torch.cat([converted(part) for part in held.split(16)]).argmax(1)
    assert float((guesses == data.held_out_labels[:448]).float().mean()) > 0.95
