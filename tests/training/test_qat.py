"""Training a prepared module: checkpoints, copies, freezing, several processes, compilation."""

from __future__ import annotations

import copy
import io
import itertools
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from support.nodes import count
from support.qat_quantizer import QATQuantizer, prepare
from torch import nn

import pt2q
from pt2q.errors import FlowError
from pt2q.ir.module import QuantGraphModule
from pt2q.observers.learnable import LearnableFakeQuantize
from pt2q.observers.standard import (
    HistogramObserver,
    MovingAverageMinMaxObserver,
    PerChannelMinMaxObserver,
)
from pt2q.observers.synchronize import synchronize_observers
from pt2q.spec.specs import QuantizationSpec
from pt2q.training.schedule import (
    QATSchedule,
    freeze_batch_norm_statistics,
    reestimate_batch_norm_statistics,
    unfreeze_batch_norm_statistics,
)

BATCH = (8, 3, 8, 8)


def network(momentum: float = 0.1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8, momentum=momentum),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8, bias=False),
        nn.BatchNorm2d(8, momentum=momentum),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(288, 4),
    )


def batches(number: int, seed: int = 7) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(BATCH, generator=generator) for _ in range(number)]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: list[torch.Tensor]) -> None:
    for i, x in enumerate(data):
        torch.manual_seed(i)  # dropout
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


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
    straight.apply(pt2q.enable_learning)
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


# ------------------------------------------------------------------ schedule


def running(model: QuantGraphModule) -> torch.Tensor:
    names = ("running_mean", "running_var", "num_batches_tracked")
    found = [b.flatten().float() for n, b in model.named_buffers() if n.split(".")[-1] in names]
    return torch.cat(found)


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


# ------------------------------------------------------------------ several processes


def _worker(rank: int, folder: str, module: QuantGraphModule) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    # What is handed to a process shares its memory with the others.
    model = nn.parallel.DistributedDataParallel(copy.deepcopy(module))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for x in batches(3, seed=rank):
        optimizer.zero_grad()
        model(x * (1 + rank)).square().mean().backward()
        optimizer.step()
    histogram = HistogramObserver(quant_min=-128, quant_max=127)
    histogram(torch.linspace(-1 - rank, 2 + 4 * rank, 8000))
    model.module.add_module("histogram", histogram)
    synchronize_observers(model)
    scale, zero_point = histogram.calculate_qparams()
    sharded = _sharded_differs(copy.deepcopy(module))
    torch.save((model.module.state_dict(), scale, zero_point, sharded), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def _sharded_differs(module: QuantGraphModule) -> list[str]:
    """The tensors that fully sharded training gives other values than training in one process."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    alone = copy.deepcopy(module)
    fully_shard(module, mesh=init_device_mesh("cpu", (2,)))
    for model in (module, alone):
        train(model, torch.optim.SGD(model.parameters(), lr=0.01), batches(3))
    found = {k: getattr(v, "full_tensor", lambda v=v: v)() for k, v in module.state_dict().items()}
    expected = alone.state_dict()
    return [
        k for k in found if not torch.allclose(found[k].float(), expected[k].float(), atol=1e-5)
    ]


def test_several_processes(tmp_path: Path) -> None:
    """Replicas end with the same ranges; sharded parameters train as whole ones do."""
    prepared = prepare(network(), batches(1)[0])
    mp.spawn(_worker, (str(tmp_path), prepared), nprocs=2)
    (one, *first), (other, *second) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for name, value in one.items():
        if "running" not in name and "histogram." not in name:
            assert torch.equal(value, other[name]), name
    assert first.pop() == second.pop() == []
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    union = HistogramObserver(quant_min=-128, quant_max=127)
    union(torch.linspace(-1, 2, 8000))
    union(torch.linspace(-2, 6, 8000))
    torch.testing.assert_close(first[0], union.calculate_qparams()[0], rtol=0.02, atol=0)


# ------------------------------------------------------------------ compilation


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fast", [False, True])
def test_a_compiled_model_trains_alike(fast: bool) -> None:
    """In one graph, with the partitioner that decides what the backward pass computes anew."""
    torch._dynamo.reset()
    model, data = network()[:3], batches(3)
    plain, compiled = (prepare(model, data[0], fast=fast) for _ in range(2))
    run = torch.compile(compiled, backend="aot_eager_decomp_partition", fullgraph=True)
    for x in data:
        expected, actual = plain(x), run(x)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
        weights = torch.randn_like(expected)
        (expected * weights).sum().backward()
        (actual * weights).sum().backward()
    for (name, one), (_, other) in zip(
        plain.named_parameters(), compiled.named_parameters(), strict=True
    ):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-3, msg=name)
    for name, value in plain.named_buffers():
        torch.testing.assert_close(compiled.get_buffer(name), value, msg=name)
