"""Switching between training and evaluation loses nothing."""

from __future__ import annotations

import copy
import pickle
import re

import pytest
import torch
from support.switching import assert_same_state, exported, run_seeded
from torch import nn
from torch.nn import functional as F

import pt2q
from pt2q.ir.graph import dump
from pt2q.ir.modes import switch_mode
from pt2q.ir.module import import_exported

IMAGE = (4, 4, 6, 6)


class Everything(nn.Module):
    """All that behaves differently in training."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(4, eps=0.01, momentum=0.3)
        self.own = nn.BatchNorm2d(4, track_running_stats=False)
        self.instance = nn.InstanceNorm2d(4, track_running_stats=True, momentum=0.2)
        self.drops = nn.Sequential(
            nn.Dropout(0.13),
            nn.Dropout2d(0.17),
            nn.AlphaDropout(0.19),
            nn.FeatureAlphaDropout(0.11),
            nn.RReLU(0.2, 0.4),
        )
        self.lstm = nn.LSTM(4, 4, num_layers=2, dropout=0.3, batch_first=True)
        self.gru = nn.GRU(4, 4, num_layers=2, dropout=0.2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.drops(self.instance(self.own(self.bn(x))))
        x = F.dropout(x + 1, 0.23, self.training, inplace=True)
        x = self.lstm(x.flatten(2).transpose(1, 2))[0]
        x = self.gru(x)[0]
        p = 0.31 if self.training else 0.0
        return F.scaled_dot_product_attention(x, x, x, dropout_p=p)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("trained", [True, False])
def test_both_modes_compute_what_the_eager_model_does(trained: bool) -> None:
    x = torch.randn(IMAGE)
    eager = Everything()
    model = exported(copy.deepcopy(eager), x, train=trained)
    for mode in (True, False, True, True, False):
        if mode and not trained:
            continue  # export in evaluation mode has dropped the attention's p
        eager.train(mode)
        (pt2q.move_exported_model_to_train if mode else pt2q.move_exported_model_to_eval)(model)
        torch.testing.assert_close(run_seeded(model, x), run_seeded(eager, x))
        assert model.training is mode
    assert_same_state(model, eager)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("trained", [True, False])
def test_any_number_of_switches_is_lossless(trained: bool) -> None:
    model = import_exported(exported(Everything(), torch.randn(IMAGE), train=trained))
    texts: dict[bool, str] = {}
    for mode in (not trained, trained, not trained, not trained, trained):
        model.train(mode)
        text = re.sub(r"%add_\w* =", "%add_ =", dump(model))  # a new node has a new name
        assert texts.setdefault(mode, text) == text
    assert "0.23" in texts[True] and "0.01" in texts[False]
    assert ("0.31" in texts[True]) is trained
    assert "0.31" not in texts[False]


def test_copies_and_pickles_switch_back() -> None:
    model = import_exported(exported(Attention(), torch.randn(1, 2, 4, 4), train=True)).eval()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert "0.31" not in dump(other)
        assert "0.31" in dump(other.train())
    plain = exported(Attention(), torch.randn(1, 2, 4, 4), train=True)
    switch_mode(plain, False)
    other = copy.deepcopy(plain)
    switch_mode(other, True)
    assert "0.31" in dump(other)


class Attention(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        p = 0.31 if self.training else 0.0
        return F.scaled_dot_product_attention(x, x, x, dropout_p=p)


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("momentum", [0.1, 0.0, None])
def test_batches_are_counted_in_training_only(trained: bool, momentum: float | None) -> None:
    if trained and momentum is None:
        pytest.skip("export cannot capture a cumulative average in training mode")
    if not trained and momentum == 0.0:
        pytest.skip("exported as a cumulative average is")
    eager = nn.Sequential(nn.BatchNorm2d(4, momentum=momentum))
    model = exported(copy.deepcopy(eager), torch.randn(IMAGE), train=trained)
    for mode in (True, True, False, True):
        x = torch.randn(IMAGE)
        eager.train(mode)
        switch_mode(model, mode)
        torch.testing.assert_close(model(x), eager(x))
        assert_same_state(model, eager)
    assert eager[0].num_batches_tracked == 3


def test_a_norm_called_twice_counts_twice() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.bn(self.bn(x).relu())

    for trained in (True, False):
        model = exported(Model(), torch.randn(IMAGE), train=trained)
        for mode in (False, True, False, True):
            switch_mode(model, mode)
        model(torch.randn(IMAGE))
        assert model.bn.num_batches_tracked == 2
