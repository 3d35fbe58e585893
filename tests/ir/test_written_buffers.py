"""Models that remember: caches and sums move with calls, and only where they should."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support.laws import assert_laws
from support.results import assert_same
from support.small_quantizers import DYNAMIC, SmallQuantizer
from support.stateful_models import (
    LENGTH,
    STATEFUL,
    WIDTH,
    Alias,
    Copy,
    Stateful,
    Sum,
    kept,
    state_of,
    steps,
    written,
)
from torch import Tensor, nn

from pt2q import convert_pt2e, prepare_pt2e, prepare_qat_pt2e, sqnr
from pt2q.ir.model_state import KeptState
from pt2q.ir.storage import copies
from pt2q.passes import verified_passes
from pt2q.quantizers import XNNPACKQuantizer, get_symmetric_quantization_config

pytestmark = [
    pytest.mark.filterwarnings("ignore::pt2q.errors.BatchNormNotFoldedWarning"),
    pytest.mark.usefixtures("no_gradients"),
]


QUANTIZERS = {
    "static": SmallQuantizer,
    "dynamic": lambda: SmallQuantizer(DYNAMIC),
    "xnnpack": XNNPACKQuantizer,
    "xnnpack dynamic": lambda: XNNPACKQuantizer().set_global(
        get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    ),
}


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("kind", STATEFUL)
def test_many_steps_stay_close_to_float(kind: type[Stateful], quantizer: str) -> None:
    model = kind().eval()
    start = kept(model)
    program = torch.export.export(model, steps()[0])
    with verified_passes(), torch.no_grad():
        ready = prepare_pt2e(program, QUANTIZERS[quantizer]())
        for step in steps(12, seed=1):
            ready(*step)
        done = convert_pt2e(ready)
        assert_laws(done, converted=True)
        # Calibration left nothing behind, neither here nor there.
        assert_same(kept(done), start)
        assert_same(kept(model), start)
        assert_same({k: program.state_dict[k] for k in start}, start)
        again = torch.export.export(copy.deepcopy(done), steps()[0])
        module = again.module()
        for step in steps():
            expected, found = model(*step), done(*step)
            assert sqnr(expected, found) > 20
            assert_same(module(*step), found)
    for name, buffer in state_of(model).items():
        assert sqnr(buffer, done.get_buffer(name)) > 22
    if quantizer == "static" and kind is not Alias:  # torch makes no functional form of aliases
        assert written(again) == written(program)


@pytest.mark.parametrize("whole", [True, False])
def test_calibration_and_use_do_not_meet(whole: bool) -> None:
    """The exported module, the prepared and two converted ones each have a state."""
    model = Sum().eval()
    program = torch.export.export(model, steps()[0])
    given = program if whole else program.module()
    ready = prepare_pt2e(given, SmallQuantizer())
    start = kept(model)
    for step in steps():
        ready(*step)
    one, two = convert_pt2e(ready), convert_pt2e(ready)
    moved = kept(ready)
    assert not torch.equal(moved["cache"], start["cache"])
    first = [one(*step) for step in steps()]
    assert_same(kept(two), start)
    assert_same([two(*step) for step in steps()], first)
    assert_same(kept(ready), moved)
    assert_same(kept(model), start)
    if not whole:
        assert_same(kept(given), start)
    # Calibrating further and converting again starts where the model was prepared.
    ready(*steps()[0])
    assert_same(kept(convert_pt2e(ready)), start)


def test_the_state_noted_at_prepare_survives_copies_and_files(tmp_path: Any) -> None:
    model = Copy().eval()
    start = kept(model)
    ready = prepare_pt2e(torch.export.export(model, steps()[0]), SmallQuantizer())
    for step in steps():
        ready(*step)
    torch.save(ready, tmp_path / "ready.pt")
    for other in (copy.deepcopy(ready), torch.load(tmp_path / "ready.pt", weights_only=False)):
        done = convert_pt2e(other)
        assert_same(kept(done), start)
        assert done.record.get(KeptState) is None


def test_the_float_model_may_move_on_after_prepare() -> None:
    model = Sum().eval()
    ready = prepare_pt2e(torch.export.export(model, steps()[0]), SmallQuantizer())
    start = kept(model)
    for step in steps():
        model(*step)
        ready(*step)
    assert not torch.equal(model.cache, start["cache"])
    assert_same(kept(convert_pt2e(ready)), start)


def test_weights_stay_shared() -> None:
    model = Sum().eval()
    module = torch.export.export(model, steps()[0]).module()
    ready = prepare_pt2e(module, SmallQuantizer())
    assert ready.get_parameter("one.weight") is module.get_parameter("one.weight")
    assert ready.get_buffer("cache") is not module.get_buffer("cache")


def test_buffers_with_one_storage_go_on_sharing_it() -> None:
    model = Alias().eval()
    ready = prepare_pt2e(torch.export.export(model, steps()[0]), SmallQuantizer())
    ready(*steps()[0])
    done = convert_pt2e(ready)
    for module in (ready, done):
        last = module.get_buffer("last")
        last.fill_(3.0)
        assert last.untyped_storage().nbytes() == LENGTH * WIDTH * 4
        assert last.storage_offset() == (LENGTH - 1) * WIDTH
    assert (model.last != 3.0).all()


class Unread(nn.Module):
    """A buffer that is only ever written, and one that does not belong to the state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("seen", torch.zeros(4))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64), persistent=False)

    seen: Tensor
    count: Tensor

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        self.seen.copy_(y.amax(0))
        self.count.add_(1)
        return y * self.count


def test_buffers_that_are_only_written_and_not_saved() -> None:
    model, x = Unread().eval(), torch.randn(3, 4)
    ready = prepare_pt2e(torch.export.export(model, (x,)), SmallQuantizer())
    for _ in range(3):
        ready(x)
    done = convert_pt2e(ready)
    assert model.count == 0 and ready.get_buffer("count") == 3 and done.get_buffer("count") == 0
    assert "count" not in done.state_dict() and "seen" in done.state_dict()
    with torch.no_grad():
        assert sqnr(model(x), done(x)) > 30
    assert sqnr(model.seen, done.get_buffer("seen")) > 25


def test_statistics_that_calibration_in_training_mode_moves() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.BatchNorm1d(4)).train()
    x = torch.randn(16, 4)
    before = {name: b.clone() for name, b in model.named_buffers()}
    ready = prepare_pt2e(torch.export.export(model, (x,)), SmallQuantizer())
    ready(x)
    ready.eval()
    done = convert_pt2e(ready)
    assert_same(dict(model.named_buffers()), before)
    assert sqnr(model.eval()(x), done(x)) > 25


def test_training_moves_the_state_of_its_model() -> None:
    """In training the state is part of what is trained, as the statistics of norms are."""
    model = Sum().eval()
    config = get_symmetric_quantization_config(is_qat=True)
    quantizer = XNNPACKQuantizer().set_global(config)
    ready = prepare_qat_pt2e(torch.export.export(model, steps()[0]), quantizer)
    with torch.no_grad():
        for step in steps():
            ready(*step)
    done = convert_pt2e(ready)
    assert_same(kept(done), kept(ready))
    with torch.no_grad():
        done(*steps()[0])
    assert not torch.equal(done.get_buffer("cache"), ready.get_buffer("cache"))


def test_copies_share_what_the_originals_share() -> None:
    base = torch.arange(12.0).reshape(3, 4)
    given = {
        "base": base,
        "row": base[1],
        "columns": base.t()[2:],
        "same": base,
        "parameter": nn.Parameter(base[0], requires_grad=False),
        "apart": torch.ones(2),
        "sparse": torch.eye(2).to_sparse(),
    }
    made = copies(given)
    for name, tensor in given.items():
        assert made[name] is not tensor and type(made[name]) is type(tensor)
        assert torch.equal(made[name].to_dense(), tensor.to_dense())
        assert made[name].shape == tensor.shape
    assert made["base"] is made["same"]
    made["base"].zero_()
    assert not made["row"].any() and not made["columns"].any() and not made["parameter"].any()
    assert base.any() and made["apart"].all()
    assert made["columns"].stride() == given["columns"].stride()
