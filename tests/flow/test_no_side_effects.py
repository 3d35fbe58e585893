"""Preparing and converting change nothing that they are given, and may be repeated."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from support.flow import exported, prepared
from support.nodes import nodes_of
from support.results import assert_same
from support.small_models import Everything
from support.small_quantizers import (
    ACTIVATION,
    SmallQuantizer,
    linears,
    weight_per_channel,
)
from torch import nn

from pt2q import (
    convert_pt2e,
    prepare_pt2e,
)
from pt2q.ir import ops
from pt2q.ir.graph import dump


def fingerprint(model: torch.fx.GraphModule) -> Any:
    state = {k: v.clone() for k, v in model.state_dict().items()}
    meta = [(n.name, sorted(n.meta), str(n.meta.get("nn_module_stack"))) for n in model.graph.nodes]
    return dump(model), model.code, state, meta, sorted(n for n, _ in model.named_modules())


def assert_unchanged(before: Any, after: Any) -> None:
    assert before[0] == after[0] and before[1] == after[1]
    assert before[2].keys() == after[2].keys()
    for key, value in before[2].items():
        assert torch.equal(value, after[2][key]) and value.dtype == after[2][key].dtype, key
    assert before[3:] == after[3:]


def test_prepare_does_not_change_what_it_is_given() -> None:
    module = exported(Everything(), torch.randn(2, 2, 5, 5))
    before = fingerprint(module)
    ready = prepare_pt2e(module, SmallQuantizer())
    assert_unchanged(before, fingerprint(module))
    ready.train()
    ready.eval()
    assert_unchanged(before, fingerprint(module))


@pytest.mark.parametrize("calibrate", [True, False])
def test_convert_does_not_change_what_it_is_given(calibrate: bool) -> None:
    x = torch.randn(2, 2, 5, 5)
    activation = ACTIVATION if calibrate else None
    ready = prepare_pt2e(exported(Everything(), x), linears(activation, weight_per_channel(0)))
    if calibrate:
        ready(x)
    before = fingerprint(ready)
    one = convert_pt2e(ready)
    assert_unchanged(before, fingerprint(ready))
    other = convert_pt2e(ready)
    assert_unchanged(fingerprint(one), fingerprint(other))
    assert_same(copy.deepcopy(one)(x), copy.deepcopy(other)(x))


def test_more_calibration_then_another_conversion() -> None:
    x = torch.randn(4, 4)
    ready = prepared(nn.Linear(4, 4), SmallQuantizer(), x)
    first = convert_pt2e(ready)
    ready(100 * x)
    second = convert_pt2e(ready)
    scales = [nodes_of(m, ops.QUANTIZE)[0].args[1] for m in (first, second)]
    assert scales[1] == pytest.approx(100 * scales[0])


def test_a_weight_that_changes_is_observed_again() -> None:
    x = torch.randn(4, 4)
    model = nn.Linear(4, 4)
    ready = prepared(model, linears(None, weight_per_channel(0)), x)
    first = convert_pt2e(ready)
    model.weight.mul_(0.125)
    second = convert_pt2e(ready)
    torch.testing.assert_close(second.weight_scale, first.weight_scale / 8)


def test_no_warning_on_the_way() -> None:
    x = torch.randn(2, 2, 5, 5)
    module = exported(Everything(), x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ready = prepare_pt2e(module, SmallQuantizer())
        ready(x)
        convert_pt2e(ready)(x)
