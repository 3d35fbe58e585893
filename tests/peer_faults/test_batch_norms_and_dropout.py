"""Batch norms and dropout where the peer changes what a model computes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support.flow import quantized
from support.nodes import nodes_of
from support.results import assert_same
from support.settling import settled
from support.small_quantizers import (
    NoopQuantizer,
    SmallQuantizer,
)
from torch import Tensor, nn

from pt2q import (
    Quantizer,
    convert_pt2e,
    move_exported_model_to_eval,
    move_exported_model_to_train,
    prepare_pt2e,
    sqnr,
)
from pt2q.errors import TrainingModeWarning
from pt2q.ir import ops

pytestmark = [
    pytest.mark.filterwarnings("ignore::pt2q.errors.NothingQuantizedWarning"),
    pytest.mark.filterwarnings("ignore::pt2q.errors.BatchNormNotFoldedWarning"),
]


IMAGE = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.bn(y) * torch.sigmoid(y)


class OneWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.one, self.two = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(self.conv(x)) + self.two(self.conv(x)) + self.conv(x)


@pytest.mark.parametrize("quantizer", [NoopQuantizer(), SmallQuantizer()])
@pytest.mark.parametrize(
    "make",
    [
        Branching,
        OneWeight,
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)),
        lambda: nn.Sequential(
            nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, track_running_stats=False), nn.ReLU()
        ),
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False)),
    ],
    ids=["used_twice", "one_weight_two_norms", "grouped_transposed", "no_statistics", "no_affine"],
)
def test_batch_norm_folding_keeps_the_function(make: Any, quantizer: Quantizer) -> None:
    model = settled(make())
    expected = model(IMAGE)
    done = quantized(model, quantizer, IMAGE)
    if isinstance(quantizer, SmallQuantizer):
        assert sqnr(expected, done(IMAGE)) > 25
    else:
        torch.testing.assert_close(done(IMAGE), expected, rtol=1e-4, atol=1e-4)


def test_a_norm_exported_in_train_mode_leaves_no_counter_behind() -> None:
    model = settled(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))
    module = torch.export.export(copy.deepcopy(model).train(), (IMAGE,)).module()
    ready = prepare_pt2e(move_exported_model_to_eval(module), SmallQuantizer())
    ready(IMAGE)
    done = convert_pt2e(ready)
    assert not [n for n in done.graph.nodes if ops.is_mutating(n)]
    assert "1.num_batches_tracked" not in done.state_dict()
    assert sqnr(model(IMAGE), done(IMAGE)) > 30


class Dropouts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.plain, self.whole = nn.Dropout(0.25), nn.Dropout2d(0.125)
        self.alpha = nn.AlphaDropout(0.375)

    def forward(self, x: Tensor) -> Tensor:
        y = self.alpha(self.whole(self.plain(x)))
        return nn.functional.scaled_dot_product_attention(
            y, y, y, dropout_p=0.0625 if self.training else 0.0
        )


def test_dropout_keeps_its_p_and_is_off_in_evaluation() -> None:
    module = torch.export.export(Dropouts().train(), (IMAGE,)).module()
    with pytest.warns(TrainingModeWarning, match="dropout"):
        ready = prepare_pt2e(module, NoopQuantizer())
    for _ in range(2):
        move_exported_model_to_eval(ready)
        assert_same(ready(IMAGE), Dropouts().eval()(IMAGE), 1e-5)
        move_exported_model_to_train(ready)
        assert not torch.equal(ready(IMAGE), ready(IMAGE))
    found = {n.args[1] for n in nodes_of(ready, ops.DROPOUT)}
    assert found == {0.25, 0.125, 0.375}
    (attention,) = nodes_of(ready, ops.SDPA)
    assert ops.argument(attention, "dropout_p") == 0.0625
