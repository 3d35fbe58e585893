"""Copies and pickles keep what a module holds; its record says where it stands."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.laws import assert_metadata
from support.moved_modules import TRAVEL, both, copies, pickled
from support.results import assert_same
from support.small_quantizers import SmallQuantizer
from torch import Tensor, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from pt2q import QuantGraphModule, convert_pt2e, prepare_pt2e, sqnr
from pt2q.ir.graph import dump
from pt2q.ir.module import FlowRecord, Note, Stage, copy_module, import_exported

pytestmark = pytest.mark.usefixtures("no_gradients")


def saved(model: QuantGraphModule) -> Any:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)


@pytest.mark.parametrize("move", [*TRAVEL, saved])
@pytest.mark.filterwarnings("error:.*LeafSpec:FutureWarning")
def test_copies_and_pickles_say_nothing(move: Callable[[Any], Any]) -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor, more: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
            return x + more["a"], [x * more["b"]]

    x = torch.randn(2, 3)
    inputs = (x, {"a": x.clone(), "b": x.clone()})
    for model in both(Model(), inputs):
        moved = move(model)
        assert moved._in_spec == model._in_spec and moved._out_spec == model._out_spec
        assert pytree.tree_structure(moved(*inputs)) == pytree.tree_structure(model(*inputs))


def test_pickles_keep_symbolic_models_symbolic() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(2, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            batch, _, length = x.shape
            return self.conv(x).reshape(batch * length, 3) + x.shape[2]

    x = torch.randn(2, 2, 6)
    shapes = {"x": {0: Dim("batch", max=64), 2: Dim("length", min=3, max=64)}}
    for model in both(Model(), (x,), dynamic_shapes=shapes):
        loaded = saved(model)
        assert dump(loaded) == dump(model)
        assert_metadata(loaded)
        for size in ((2, 6), (5, 11)):
            y = torch.randn(size[0], 2, size[1])
            assert_same(loaded(y), model(y))
    again = torch.export.export(loaded, (x,), dynamic_shapes=shapes).module()
    y = torch.randn(4, 2, 9)
    assert_same(again(y), model(y))


class State(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("kept", torch.ones(4))
        self.register_buffer("passing", torch.full((4,), 2.0), persistent=False)

    kept: Tensor
    passing: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.kept + self.passing


def test_buffers_that_are_not_persistent_stay_so() -> None:
    x = torch.randn(3, 4)
    for model in both(State(), (x,)):
        for moved in copies(model):
            assert "kept" in moved.state_dict()
            assert "passing" not in moved.state_dict()
            assert "passing_quantized" not in moved.state_dict()
            assert {"passing", "passing_quantized"} & dict(moved.named_buffers()).keys()
            assert_same(moved(x), model(x))


def test_a_deep_copy_shares_nothing() -> None:
    x = torch.randn(3, 4)
    for model in both(State(), (x,)):
        other = copy.deepcopy(model)
        before = model(x)
        for tensor in (*other.parameters(), *other.buffers()):
            if tensor.is_floating_point():
                tensor.fill_(0.5)
        other.record.note("test", "x", "only here")
        for node in other.graph.nodes:
            node.meta.clear()
        assert_same(model(x), before)
        assert model.record.notes != other.record.notes
        assert_metadata(model)
        assert not {id(n) for n in model.graph.nodes} & {id(n) for n in other.graph.nodes}


def test_a_copy_shares_tensors_and_nothing_else() -> None:
    program = torch.export.export(State(), (torch.randn(3, 4),))
    module = import_exported(program)
    other = copy_module(module)
    assert other.linear.weight is module.linear.weight
    assert other.linear is not module.linear
    assert other.graph is not module.graph
    other.linear.weight = nn.Parameter(torch.zeros(4, 4))
    assert module.linear.weight.abs().sum() > 0


class Aliases(nn.Module):
    """One tensor under two names, or a view of it; written by the one, read by the other."""

    def __init__(self, view: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("state", torch.zeros(2, 4))
        self.register_buffer("other", self.state[0] if view else self.state)

    state: Tensor
    other: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.state.mul_(0.5)
        self.state.add_(x.mean(0))
        return self.linear(x) + self.other.sum(0)


@pytest.mark.parametrize("view", [True, False])
@pytest.mark.parametrize("move", [copy.deepcopy, saved, pickled])
def test_tensors_that_are_one_stay_one(view: bool, move: Any) -> None:
    inputs = tuple(torch.randn(3, 4) for _ in range(4))
    model = Aliases(view).eval()
    fresh = copy.deepcopy(model)  # convert starts from the buffers as they were at prepare
    ready = prepare_pt2e(torch.export.export(copy.deepcopy(model), inputs[:1]), SmallQuantizer())
    for x in inputs:
        assert_same(ready(x), model(x), 1e-5)
    done = move(convert_pt2e(move(ready)))
    for x in inputs:
        assert sqnr(fresh(x), done(x)) > 22


def test_shared_observers_stay_shared() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, x + 1])

    ready, _ = both(Model(), (torch.randn(3, 4),))
    expected = sum("activation_post_process" in n for n, _ in ready.named_children())
    for moved in copies(ready):
        assert sum("activation_post_process" in n for n, _ in moved.named_children()) == expected
        moved(1000 * torch.ones(3, 4))
        assert len({str(n) for n, _ in moved.named_children()}) == expected
    assert nodes_scale(convert_pt2e(ready)) > 3.0


def nodes_scale(model: QuantGraphModule) -> float:
    return max(n.args[1] for n in model.graph.nodes if "quantize_per_tensor" in str(n.target))


def test_hooks_of_users_survive() -> None:
    ready, _ = both(nn.Sequential(nn.Linear(4, 4)), (torch.randn(3, 4),))
    seen: list[int] = []
    ready.register_forward_hook(lambda *_: seen.append(1))
    copy.deepcopy(ready)(torch.randn(3, 4))
    ready(torch.randn(3, 4))
    assert seen == [1, 1]


def test_modes_and_devices_travel() -> None:
    ready, done = both(nn.Sequential(nn.Linear(4, 4), nn.Dropout()), (torch.randn(3, 4),))
    ready.train()
    for moved in copies(ready):
        assert moved.training
    ready.eval()
    assert not any(moved.training for moved in copies(ready))
    half = copy.deepcopy(done).to(torch.float64)
    assert half.get_buffer("0.weight_quantized").dtype == torch.int8


def test_the_record_says_where_it_stands() -> None:
    x = torch.randn(3, 4)
    module = import_exported(torch.export.export(nn.Linear(4, 4), (x,)))
    ready, done = both(nn.Linear(4, 4), (x,))
    assert [m.record.stage for m in (module, ready, done)] == [
        Stage.FLOAT,
        Stage.PREPARED,
        Stage.CONVERTED,
    ]
    record = FlowRecord()
    record.note("a_pass", "conv", "it is too wide")
    assert record.notes == [Note("a_pass", "conv", "it is too wide")]
    assert str(record.notes[0]) == "[a_pass] conv: it is too wide"


def test_what_is_skipped_is_on_record() -> None:
    ready, done = both(State(), (torch.randn(3, 4),))
    assert done.record.notes == ready.record.notes
    done.record.note("test", "x", "later")
    assert done.record.notes != ready.record.notes
