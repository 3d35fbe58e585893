"""Schedules: what is frozen when, and statistics estimated anew."""

from __future__ import annotations

import itertools

import pytest
import torch
from support.nodes import count
from support.qat_quantizer import prepare
from support.training import batches, network, running
from torch import nn

import pt2q
from pt2q.errors import FlowError
from pt2q.training import (
    QATSchedule,
    freeze_batch_norm_statistics,
    reestimate_batch_norm_statistics,
    unfreeze_batch_norm_statistics,
)


def test_frozen_statistics_stay_through_mode_switches() -> None:
    data = batches(4)
    prepared = prepare(network(), data[0])
    prepared(data[0])
    freeze_batch_norm_statistics(prepared)
    before = running(prepared).clone()
    prepared(data[1])
    prepared.eval()
    prepared.train()
    prepared(data[2])
    assert torch.equal(running(prepared), before)
    assert count(prepared, "add_") == 0
    assert "dropout.default" in str(prepared.graph) and prepared.training
    unfreeze_batch_norm_statistics(prepared)
    prepared(data[2])
    assert not torch.equal(running(prepared), before)
    assert prepared.get_buffer("1.num_batches_tracked") == 2


def test_a_schedule_freezes_in_time_and_resumes() -> None:
    data = batches(8)
    prepared = prepare(network(), data[0])
    schedule = QATSchedule(prepared, 1, freeze_observers_after=3, freeze_statistics_after=5)
    seen = []
    for x in data:
        schedule.step()
        prepared(x)
        fake = prepared.activation_post_process_1
        ranges = fake.activation_post_process.max_val.clone()
        seen.append((bool(fake.fake_quant_enabled), ranges, running(prepared).clone()))
    assert [on for on, _, _ in seen] == [False] + [True] * 7
    moved = [not torch.equal(a[1], b[1]) for a, b in itertools.pairwise(seen)]
    assert moved == [True, True, False, False, False, False, False]
    moved = [not torch.equal(a[2], b[2]) for a, b in itertools.pairwise(seen)]
    assert moved == [True, True, True, True, False, False, False]
    other = prepare(network(), data[0])
    other.load_state_dict(prepared.state_dict())
    resumed = QATSchedule(other, 1, freeze_observers_after=3, freeze_statistics_after=5)
    resumed.load_state_dict(schedule.state_dict())
    resumed.step()
    before = running(other).clone()
    other(data[0])
    assert torch.equal(running(other), before)


@pytest.mark.parametrize("fast", [False, True])
def test_statistics_are_estimated_anew(fast: bool) -> None:
    data = batches(5)
    model = network()
    prepared = prepare(model, data[0], fast=fast)
    prepared.apply(pt2q.disable_fake_quant)
    assert reestimate_batch_norm_statistics(prepared, [(x, None) for x in data]) == 5
    first = model[0](torch.cat(data))
    torch.testing.assert_close(
        prepared.get_buffer("1.running_mean"), first.mean((0, 2, 3)), rtol=1e-4, atol=1e-5
    )
    expected = torch.stack([model[0](x).var((0, 2, 3)) for x in data]).mean(0)
    torch.testing.assert_close(prepared.get_buffer("1.running_var"), expected, rtol=1e-4, atol=1e-5)
    text = str(prepared.graph)
    assert prepared.training and "0.1" in text
    prepared(data[0])
    assert prepared.get_buffer("1.num_batches_tracked") == 1


def test_tools_refuse_other_modules() -> None:
    with pytest.raises(FlowError, match="prepare_qat_pt2e"):
        freeze_batch_norm_statistics(nn.BatchNorm2d(3))
