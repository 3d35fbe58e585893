"""Prepared and converted models are copied, pickled, saved and exported again."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.flow import exported
from support.laws import assert_laws, assert_metadata
from support.nodes import nodes_of
from support.results import assert_same
from support.small_models import Everything
from support.small_quantizers import (
    ACTIVATION,
    DYNAMIC,
    PER_TOKEN,
    SmallQuantizer,
)
from torch import nn

from pt2q import (
    QuantGraphModule,
    QuantizationSpec,
    convert_pt2e,
    prepare_pt2e,
)
from pt2q.errors import (
    FlowError,
)
from pt2q.ir import ops
from pt2q.ir.graph import dump


def through_torch_save(model: QuantGraphModule) -> Any:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)


TRAVEL: dict[str, Callable[[QuantGraphModule], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": through_torch_save,
    "twice": lambda model: through_torch_save(copy.deepcopy(model)),
}


@pytest.mark.parametrize("way", TRAVEL)
@pytest.mark.parametrize("dynamic", [False, True])
def test_travelling_keeps_everything(way: str, dynamic: bool) -> None:
    x = torch.randn(3, 2, 5, 5)
    shapes = {"x": {0: torch.export.Dim.AUTO}} if dynamic else None
    module = exported(Everything(), x, dynamic_shapes=shapes)
    ready = prepare_pt2e(module, SmallQuantizer())
    ready(x)
    moved = TRAVEL[way](ready)
    assert dump(moved) == dump(ready)
    assert_metadata(moved)
    moved(2 * x)  # and is still calibrated on its own
    done = convert_pt2e(ready)
    for original, sample in ((done, x), (convert_pt2e(moved), 2 * x)):
        arrived = TRAVEL[way](original)
        assert dump(arrived) == dump(original)
        assert_laws(arrived, converted=True)
        assert_same(arrived(sample), original(sample))
        assert arrived.state_dict().keys() == original.state_dict().keys()
        assert arrived.record.stage == original.record.stage
        if dynamic:
            assert arrived(torch.randn(5, 2, 5, 5)).shape == (5, 4)
        with pytest.raises(FlowError, match="already converted"):
            convert_pt2e(arrived)
    wide, narrow = nodes_of(convert_pt2e(moved), ops.QUANTIZE), nodes_of(done, ops.QUANTIZE)
    assert wide[0].args[1] > narrow[0].args[1]


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("spec", [ACTIVATION, DYNAMIC, PER_TOKEN])
def test_exported_again(strict: bool, spec: QuantizationSpec) -> None:
    model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), torch.randn(3, 4)
    batch = torch.export.Dim("batch", min=2, max=64)
    module = exported(model, x, dynamic_shapes=({0: batch},), strict=strict)
    ready = prepare_pt2e(module, SmallQuantizer(spec))
    ready(x)
    done = convert_pt2e(ready)
    shapes = {"input": {0: torch.export.Dim.AUTO}}
    program = torch.export.export(done, (x,), dynamic_shapes=shapes, strict=strict)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    loaded = torch.export.load(io.BytesIO(buffer.getvalue()))
    for size in (2, 3, 17):
        y = torch.randn(size, 4)
        assert_same(program.module()(y), done(y))
        assert_same(loaded.module()(y), done(y))
    decomposed = program.run_decompositions()
    torch.testing.assert_close(decomposed.module()(x), done(x))
