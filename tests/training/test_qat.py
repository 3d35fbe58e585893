"""Training continues over checkpoints, copies and conversions."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from support.nodes import count
from support.qat_quantizer import QATQuantizer, prepare
from support.training import batches, network, train
from torch import nn

import pt2q
from pt2q.flow.owned_weights import own_scaled_weights
from pt2q.ir.module import QuantGraphModule
from pt2q.observers import (
    FakeQuantize,
    LearnableFakeQuantize,
    MovingAverageMinMaxObserver,
    PerChannelMinMaxObserver,
)
from pt2q.spec import QuantizationSpec


def states_equal(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.01)


LEARNED = {
    "activation": QuantizationSpec(
        torch.int8,
        LearnableFakeQuantize.with_args(observer=MovingAverageMinMaxObserver),
        -128,
        127,
        torch.per_tensor_affine,
    ),
    "weight": QuantizationSpec(
        torch.int8,
        LearnableFakeQuantize.with_args(observer=PerChannelMinMaxObserver),
        -8,
        7,
        torch.per_channel_symmetric,
        ch_axis=0,
    ),
}


@pytest.mark.parametrize("options", [{}, LEARNED], ids=["plain", "learned"])
def test_a_checkpoint_continues_bit_for_bit(options: dict) -> None:
    model, data = network(), batches(8)

    def fresh() -> QuantGraphModule:
        return prepare(model, data[0], quantizer=QATQuantizer(**options))

    straight = fresh()
    optimizer = adam(straight)
    train(straight, optimizer, data[:4])
    straight.apply(pt2q.enable_range_learning)
    saved = io.BytesIO()
    torch.save({"model": straight.state_dict(), "optimizer": optimizer.state_dict()}, saved)
    saved.seek(0)
    resumed = fresh()
    stored = torch.load(saved)
    resumed.load_state_dict(stored["model"])
    resumed_optimizer = adam(resumed)
    resumed_optimizer.load_state_dict(stored["optimizer"])
    train(straight, optimizer, data[4:])
    train(resumed, resumed_optimizer, data[4:])
    assert states_equal(straight, resumed)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fast", [False, True])
def test_copies_and_saved_models_train_on(fast: bool) -> None:
    data = batches(4)
    prepared = prepare(network(), data[0], fast=fast)
    train(prepared, adam(prepared), data[:2])
    stored = io.BytesIO()
    torch.save(prepared, stored)
    stored.seek(0)
    others = [copy.deepcopy(prepared), torch.load(stored, weights_only=False)]
    for model in (prepared, *others):
        train(model, adam(model), data[2:])
    assert all(states_equal(prepared, other) for other in others)
    expected = pt2q.convert_pt2e(prepared.eval())(data[0])
    for other in others:
        assert torch.equal(pt2q.convert_pt2e(other.eval())(data[0]), expected)


def test_averaged_model() -> None:
    data = batches(4)
    prepared = prepare(network(), data[0])
    train(prepared, adam(prepared), data[:1])
    average = torch.optim.swa_utils.AveragedModel(
        prepared, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True
    )
    optimizer = adam(prepared)
    for x in data:
        train(prepared, optimizer, [x])
        average.update_parameters(prepared)
    converted = pt2q.convert_pt2e(average.module.eval())
    assert count(converted, "batch_norm") == 0
    assert pt2q.sqnr(average.module.apply(pt2q.disable_observer)(data[0]), converted(data[0])) > 20


def test_training_and_converting_again() -> None:
    data = batches(6)
    prepared = prepare(network(), data[0])
    optimizer = adam(prepared)
    train(prepared, optimizer, data[:3])
    first = pt2q.convert_pt2e(prepared)
    expected = first(data[0])
    train(prepared, optimizer, data[3:])
    assert torch.equal(first(data[0]), expected)
    assert not torch.equal(pt2q.convert_pt2e(prepared)(data[0]), expected)


@pytest.mark.parametrize("fast", [False, True])
def test_both_forms_train_equally_well(fast: bool) -> None:
    """Loss curves of the plain and the fast form, which differ by rounding alone."""
    torch.manual_seed(3)
    model, data = network(), batches(16)
    curves = []
    for form in (False, fast):
        prepared = prepare(model, data[0], fast=form)
        prepared.apply(pt2q.disable_fake_quant)
        optimizer, losses = torch.optim.SGD(prepared.parameters(), lr=0.05), []
        for x in data:
            torch.manual_seed(0)
            optimizer.zero_grad()
            loss = (prepared(x) - x.mean((1, 2, 3))[:, None]).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        curves.append(torch.stack(losses))
    torch.testing.assert_close(*curves, rtol=1e-3, atol=1e-4)


def rounded_in_place(prepared: QuantGraphModule, x: torch.Tensor) -> dict[str, bool]:
    """Whether the output of each fake quantizer is its input, by the node that it watches."""
    found: dict[str, bool] = {}

    def note(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        found[module.node_name] = output.data_ptr() == args[0].data_ptr()

    fakes = [m for m in prepared.modules() if isinstance(m, FakeQuantize)]
    hooks = [m.register_forward_hook(note) for m in fakes]
    prepared(x)
    for hook in hooks:
        hook.remove()
    return found


def test_only_weights_that_a_step_scales_are_rounded_in_place() -> None:
    data = batches(1)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3))
    prepared = prepare(model, data[0])
    weights = {name: p.detach().clone() for name, p in prepared.named_parameters()}
    in_place = rounded_in_place(prepared, data[0])
    assert sorted(in_place.values()) == [False] * (len(in_place) - 1) + [True]
    assert next(name for name, owned in in_place.items() if owned).startswith("mul")
    assert all(torch.equal(p, weights[n]) for n, p in prepared.named_parameters())
    with torch.no_grad():
        assert not any(rounded_in_place(prepared, data[0]).values())


def test_a_scaled_weight_that_others_read_is_not_written() -> None:
    data = batches(1)
    prepared = prepare(network(), data[0])
    alone = {m.owns_input for m in prepared.modules() if isinstance(m, FakeQuantize)}
    assert alone == {True, False}
    scaled = next(n for n in prepared.graph.nodes if n.target is torch.ops.aten.mul.Tensor)
    with prepared.graph.inserting_after(scaled):
        prepared.graph.call_function(torch.ops.aten.neg.default, (scaled,))
    own_scaled_weights(prepared)
    (reader,) = (n for n in scaled.users if n.op == "call_module")
    assert prepared.get_submodule(str(reader.target)).owns_input is False
