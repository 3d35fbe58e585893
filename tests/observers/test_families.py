"""Observers by name, and what stands in where another granularity is needed."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
from support.own_observers import EveryBatch, Percentile, Rounding

import pt2q
from pt2q.app.recipe import parse
from pt2q.errors import ObserverReplacedWarning, PluginWarning
from pt2q.observers import OBSERVERS, PerGroupMinMaxObserver, constructor_for
from pt2q.quantizers import get_symmetric_quantization_config
from pt2q.quantizers.toolkit.scales_of_weights import per_tensor
from pt2q.registry import Registry

TENSOR, AXIS = pt2q.PerTensor(), pt2q.PerAxis(0)
FUSED = pt2q.FusedMovingAvgObsFakeQuantize


class PerChannelAlone(EveryBatch):
    per_channel = True


def test_the_named_observers() -> None:
    assert list(OBSERVERS)[:3] == ["histogram", "minmax", "moving-average"]
    assert OBSERVERS["histogram"].member(TENSOR) is pt2q.HistogramObserver
    assert OBSERVERS["histogram"].member(AXIS) is None
    assert OBSERVERS["minmax"].member(AXIS) is pt2q.PerChannelMinMaxObserver
    assert OBSERVERS["minmax"].member(pt2q.PerGroup(8)) is PerGroupMinMaxObserver


@pytest.mark.parametrize(
    "constructor, granularity, expected",
    [
        (pt2q.MinMaxObserver, TENSOR, pt2q.MinMaxObserver),
        (
            pt2q.PerChannelMinMaxObserver.with_args(eps=0.5),
            TENSOR,
            pt2q.MinMaxObserver.with_args(eps=0.5),
        ),
        (
            functools.partial(pt2q.MovingAverageMinMaxObserver, averaging_constant=0.5),
            AXIS,
            pt2q.MovingAveragePerChannelMinMaxObserver.with_args(averaging_constant=0.5),
        ),
        (
            FUSED.with_args(observer=pt2q.MovingAveragePerChannelMinMaxObserver, eps=0.5),
            TENSOR,
            FUSED.with_args(observer=pt2q.MovingAverageMinMaxObserver, eps=0.5),
        ),
        (Percentile, AXIS, Percentile),
        (EveryBatch, TENSOR, EveryBatch),
        (Rounding, AXIS, Rounding),
        (PerChannelAlone, AXIS, PerChannelAlone),
        (PerChannelAlone, TENSOR, None),
        (pt2q.HistogramObserver, AXIS, None),
    ],
)
def test_the_same_kind_for_another_granularity(constructor, granularity, expected) -> None:
    assert constructor_for(constructor, granularity) == expected


def test_a_users_weight_observer_stays_where_an_operator_takes_one_scale() -> None:
    weight = get_symmetric_quantization_config(is_per_channel=True).weight
    own = replace(weight, observer_or_fake_quant_ctr=EveryBatch.with_args(eps=0.5))
    found = per_tensor(own)
    assert found.observer_or_fake_quant_ctr == EveryBatch.with_args(eps=0.5)
    assert (found.qscheme, found.ch_axis) == (torch.per_tensor_symmetric, None)
    assert (found.quant_min, found.quant_max) == (weight.quant_min, weight.quant_max)
    with pytest.warns(ObserverReplacedWarning, match="PerTensor.. alone.*PerChannelAlone"):
        replaced = per_tensor(replace(weight, observer_or_fake_quant_ctr=PerChannelAlone))
    assert replaced.observer_or_fake_quant_ctr.func is pt2q.MinMaxObserver


def test_packages_add_observers_that_recipes_can_name(tmp_path, monkeypatch) -> None:
    (tmp_path / "their_observers.py").write_text(
        "from pt2q import MinMaxObserver\nclass Wide(MinMaxObserver):\n    pass\nBAD = 3\n"
    )
    info = tmp_path / "their_observers-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[pt2q.observers]\nwide = their_observers:Wide\nbad = their_observers:BAD\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    ours = {name: entry.value for name, entry in OBSERVERS._ours.items()}
    fresh = Registry(OBSERVERS.noun, OBSERVERS.group, ours, OBSERVERS._check)
    for reader in ("pt2q.app.recipe.config", "pt2q.quantizers.toolkit.other_observers"):
        monkeypatch.setattr(f"{reader}.OBSERVERS", fresh)
    with pytest.warns(PluginWarning, match="theirs offers observer 'bad'.*found 3"):
        recipe = parse('[default]\nactivation_observer = "wide"')
    config = recipe.quantizer().selection.configs()[0]
    assert config.input_activation.observer_or_fake_quant_ctr.func.__name__ == "Wide"
