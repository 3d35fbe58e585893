"""Calls in the wrong order, on the wrong thing, or with nothing to do, are said so."""

from __future__ import annotations

import pytest
import torch
from support.flow import exported
from support.results import assert_same
from support.small_quantizers import (
    NoopQuantizer,
    SmallQuantizer,
)
from torch import Tensor, nn

from pt2q import (
    convert_pt2e,
    prepare_pt2e,
    prepare_qat_pt2e,
)
from pt2q.errors import (
    FlowError,
    NoDataError,
    NotExportedError,
    NothingQuantizedWarning,
)
from pt2q.quantizers import XNNPACKQuantizer, get_symmetric_quantization_config


def test_an_uncalibrated_static_model_says_both_ways_out() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Linear(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.block(x)

    ready = prepare_pt2e(exported(Model(), torch.randn(1, 4)), SmallQuantizer())
    with pytest.raises(NoDataError) as caught:
        convert_pt2e(ready)
    text = str(caught.value)
    assert "at x, linear" in text
    assert "calibrate" in text and "leave them in float" in text
    assert "set_module_name('block.0', None)" in text
    ready(torch.randn(1, 4))
    convert_pt2e(ready)


def test_the_wrong_order_is_said_so() -> None:
    x = torch.randn(1, 4)
    model = nn.Linear(4, 4)
    module = exported(model, x)
    with pytest.raises(FlowError, match="never prepared"):
        convert_pt2e(module)
    ready = prepare_pt2e(module, SmallQuantizer())
    ready(x)
    with pytest.raises(FlowError, match="already prepared"):
        prepare_pt2e(ready, SmallQuantizer())
    done = convert_pt2e(ready)
    with pytest.raises(FlowError, match="already converted"):
        convert_pt2e(done)
    with pytest.raises(FlowError, match="already converted"):
        prepare_pt2e(done, SmallQuantizer())


def test_what_was_never_exported_is_said_so() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    for wrong in (model, torch.fx.symbolic_trace(model), torch.relu):
        with pytest.raises(NotExportedError, match=r"torch\.export\.export\(model"):
            prepare_pt2e(wrong, SmallQuantizer())  # type: ignore[arg-type]
    with pytest.raises(NotExportedError, match=r"torch\.export"):
        convert_pt2e(model)  # type: ignore[arg-type]
    with pytest.raises((NotExportedError, FlowError)):
        convert_pt2e(torch.fx.symbolic_trace(model))


def test_a_quantizer_must_be_an_instance_of_one() -> None:
    module = exported(nn.ReLU(), torch.randn(2))
    with pytest.raises(FlowError, match="SmallQuantizer is no quantizer instance"):
        prepare_pt2e(module, SmallQuantizer)  # type: ignore[arg-type]
    with pytest.raises(FlowError, match="str is no quantizer instance"):
        prepare_pt2e(module, "int8")  # type: ignore[arg-type]


def test_nothing_quantized_warns() -> None:
    module = exported(nn.ReLU(), torch.randn(2))
    with pytest.warns(NothingQuantizedWarning, match="annotated nothing") as caught:
        ready = prepare_pt2e(module, NoopQuantizer())
    assert caught[0].filename == __file__
    assert_same(convert_pt2e(ready)(torch.ones(2)), torch.ones(2))


def test_training_without_fake_quantizers_warns() -> None:
    module = exported(nn.Linear(4, 4), torch.randn(2, 4))
    with pytest.warns(NothingQuantizedWarning, match="no fake quantizers") as caught:
        prepare_qat_pt2e(module, XNNPACKQuantizer())
    assert [w.filename for w in caught] == [__file__]
    config = get_symmetric_quantization_config(is_per_channel=True, is_qat=True)
    prepare_qat_pt2e(module, XNNPACKQuantizer(config))  # warnings are errors here


def test_validate_is_asked() -> None:
    class Picky(SmallQuantizer):
        def validate(self, model: torch.fx.GraphModule) -> None:
            raise RuntimeError("not on this device")

    with pytest.raises(RuntimeError, match="not on this device"):
        prepare_pt2e(exported(nn.ReLU(), torch.randn(2)), Picky())
