"""The engine's laws: the values of running the whole, bit for bit, and none held too long."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from support import random_images, random_sequences
from support.control_flow_models import MODELS, exported, inputs
from support.random_steps import Step
from support.results import assert_same
from support.small_quantizers import DYNAMIC, PER_TOKEN, SmallQuantizer
from support.stateful_models import STATEFUL, Stateful, state_of, steps
from test_laws import RandomQuantizer
from torch import Tensor, nn
from torch.fx import Node

from pt2q import QuantGraphModule, Quantizer, convert_pt2e, prepare_pt2e
from pt2q.algorithms.engine import Lane, Taps, Walk
from pt2q.errors import BatchNormNotFoldedWarning, DataError, NothingQuantizedWarning
from pt2q.quantizers import XNNPACKQuantizer

pytestmark = [
    pytest.mark.filterwarnings("ignore:The tensor attributes self"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
FEW = settings(
    deadline=None,
    derandomize=True,
    max_examples=12,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
BATCHES = 3


def ready(network: nn.Module, batches: list[Any], quantizer: Quantizer) -> QuantGraphModule:
    """Prepared, calibrated, its buffers as they were before that."""
    program = torch.export.export(network, batches[0])
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", BatchNormNotFoldedWarning)
        warnings.simplefilter("ignore", NothingQuantizedWarning)
        prepared = prepare_pt2e(program, quantizer)
        for batch in batches:
            prepared(*clone(batch))
    return prepared


def clone(batch: Any) -> Any:
    return tuple(x.clone() for x in batch)


def calls(model: nn.Module, batches: list[Any]) -> list[Any]:
    """The results of calls one after the other, each as it was right after its call."""
    with torch.no_grad():
        return [copy.deepcopy(model(*clone(batch))) for batch in batches]


def from_the_start(prepared: QuantGraphModule) -> QuantGraphModule:
    """A copy whose buffers are what they were when it was prepared."""
    from pt2q.ir.model_state import restore_state

    fresh = copy.deepcopy(prepared)
    restore_state(fresh)
    return fresh


def every_stop(walk: Walk) -> list[Node]:
    return [node for node in walk.schedule.nodes if node.op not in ("placeholder", "output")]


def check(
    prepared: QuantGraphModule, batches: list[Any], stops: int | None, **options: Any
) -> Walk:
    """Both lanes give what the prepared and the converted model give, however often it stops."""
    expected = {
        "float": calls(from_the_start(prepared), batches),
        "rounded": calls(convert_pt2e(prepared), batches),
    }
    with Walk(prepared, [clone(b) for b in batches], **options) as walk:
        places = every_stop(walk)
        for node in places[:: stops or 1] if stops != 0 else []:
            walk.advance(node)
            for lane in walk.lanes:
                held = walk.store.names((lane, 0))
                assert held == set(walk.schedule.live(walk.position))
        found = walk.finish()
        for lane, results in expected.items():
            assert_same(found[lane], results)
        assert all(not walk.store.names((lane, b)) for lane in found for b in range(walk.count))
        assert walk.most == most_alive(walk)
    return walk


def most_alive(walk: Walk) -> int:
    """The largest number of values that are alive at one node, by the definition."""
    nodes = list(walk.model.graph.nodes)
    place = {node: index for index, node in enumerate(nodes)}
    values = [n for n in nodes if walk.schedule.is_value(n)]
    spans = [
        (
            -1 if n.op == "placeholder" else place[n],
            max([place[u] for u in n.users], default=-1 if n.op == "placeholder" else place[n]),
        )
        for n in values
    ]
    computed = [place[n] for n in values if n.op != "placeholder"] + [len(nodes) - 1]
    return max(
        sum(first <= at <= last for first, last in spans) + (at == len(nodes) - 1)
        for at in computed
    )


QUANTIZERS: list[Callable[[int], Quantizer]] = [
    lambda seed: SmallQuantizer(),
    lambda seed: SmallQuantizer(DYNAMIC),
    RandomQuantizer,
    lambda seed: XNNPACKQuantizer(),
]


@FEW
@given(recipe=random_images.recipes(), kind=st.integers(0, 3), stops=st.integers(0, 3))
@example(random_images.Recipe(2, 2, (Step("buffer", 0, 0, 0), Step("conv", 1, 1, 0)), 1, 0), 0, 1)
@example(
    random_images.Recipe(2, 2, (Step("view_write", 0, 0, 0), Step("conv", 1, 1, 0)), 1, 0), 2, 1
)
def test_random_image_networks(recipe: random_images.Recipe, kind: int, stops: int) -> None:
    batches = [recipe.inputs(seed) for seed in range(BATCHES)]
    prepared = ready(random_images.Network(recipe), batches, QUANTIZERS[kind](recipe.seed))
    check(prepared, batches, stops)


@FEW
@given(recipe=random_sequences.recipes(), kind=st.integers(0, 3), stops=st.integers(0, 3))
def test_random_sequence_networks(recipe: random_sequences.Recipe, kind: int, stops: int) -> None:
    batches = [recipe.inputs(seed) for seed in range(BATCHES)]
    prepared = ready(random_sequences.Network(recipe), batches, QUANTIZERS[kind](recipe.seed))
    check(prepared, batches, stops)


@settings(FEW, max_examples=5)
@given(recipe=random_images.recipes(), kind=st.integers(0, 3))
@example(random_images.Recipe(2, 2, (Step("view_write", 0, 0, 0), Step("conv", 1, 1, 0)), 1, 0), 0)
@example(random_images.Recipe(2, 4, (Step("slice_write", 0, 0, 0), Step("add_", 1, 1, 0)), 2, 0), 0)
def test_the_same_from_files(recipe: random_images.Recipe, kind: int) -> None:
    batches = [recipe.inputs(seed) for seed in range(BATCHES)]
    prepared = ready(random_images.Network(recipe), batches, QUANTIZERS[kind](recipe.seed))
    walk = check(prepared, batches, 1, spill=True)
    assert not walk.store.folder.exists()  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", STATEFUL)
@pytest.mark.parametrize("spill", [False, True])
def test_state_is_handed_from_batch_to_batch(kind: type[Stateful], spill: bool) -> None:
    batches = steps()
    prepared = ready(kind().eval(), batches, SmallQuantizer())
    before = {name: b.clone() for name, b in state_of(prepared).items()}
    check(prepared, batches, 1, spill=spill)
    assert_same(state_of(prepared), before)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_bodies_of_control_flow(kind: type[nn.Module], dynamic: bool) -> None:
    batches = [(x,) for x in inputs()]
    quantizer = SmallQuantizer(PER_TOKEN) if dynamic else SmallQuantizer()
    prepared = prepare_pt2e(exported(kind), quantizer)
    calls(prepared, batches)
    check(prepared, batches, 1)


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, *, more: dict[str, Tensor]) -> dict[str, Any]:
        y, z = self.linear(x).split(2, dim=-1)
        return {"sum": y + z, "pair": (more["u"] + x, more["v"])}


def test_keywords_dicts_and_tuples() -> None:
    x, u, v = torch.randn(3, 2, 4).unbind()
    program = torch.export.export(Keywords().eval(), (x,), {"more": {"u": u, "v": v}})
    prepared = prepare_pt2e(program, SmallQuantizer())
    batches = [{"x": x, "more": {"u": u, "v": v}}, (v, {"u": x, "v": u})]
    expected = [prepared(x, more={"u": u, "v": v}), prepared(v, more={"u": x, "v": u})]
    with Walk(prepared, batches) as walk:
        found = walk.finish()["float"]
    assert found[0].keys() == expected[0].keys()
    assert_same(found, expected)


def test_dynamic_sizes() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    batches = [(torch.randn(n, 4),) for n in (2, 5, 3)]
    program = torch.export.export(
        network, batches[0], dynamic_shapes=({0: torch.export.Dim("n", min=2)},)
    )
    prepared = prepare_pt2e(program, SmallQuantizer())
    calls(prepared, batches)
    check(prepared, batches, 1)


def test_what_a_walk_reads_must_be_calls_of_the_model() -> None:
    prepared = ready(nn.Linear(4, 2), [(torch.randn(2, 4),)], SmallQuantizer())
    for batches, words in [
        ([], "no batch"),
        ([{"y": torch.randn(2, 4)}], "takes"),
        ([(torch.randn(2, 4), 1)], "2 argument"),
        (["text"], "str"),
    ]:
        with pytest.raises(DataError, match=words):
            Walk(prepared, batches)


def test_folders_go_when_something_fails(tmp_path: Path) -> None:
    prepared = ready(nn.Linear(4, 2), [(torch.randn(2, 4),)], SmallQuantizer())
    with pytest.raises(DataError):
        Walk(prepared, [(torch.randn(2, 4),), 3], spill=tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ZeroDivisionError), Walk(prepared, [torch.randn(2, 4)], spill=tmp_path):
        assert list(tmp_path.iterdir())
        1 / 0  # noqa: B018 - it is to fail
    assert not list(tmp_path.iterdir())


def test_the_callers_batches_stay_as_they_are() -> None:
    class Writes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mul_(2) + 1

    x = torch.randn(2, 4)
    prepared = prepare_pt2e(torch.export.export(Writes(), (x.clone(),)), RandomQuantizer(1))
    before = x.clone()
    with Walk(prepared, [x], [Lane.floating()]) as walk:
        assert_same(walk.finish()["float"][0], before * 2 + 1)
    assert_same(x, before)


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).relu()) + x


def linears(prepared: QuantGraphModule) -> list[Node]:
    return [n for n in prepared.graph.nodes if n.target is torch.ops.aten.linear.default]


def test_what_is_changed_at_a_stop_is_what_the_rest_is_computed_with() -> None:
    batches = [(torch.randn(3, 8),) for _ in range(2)]
    prepared = ready(Chain().eval(), batches, SmallQuantizer())
    expected = calls(prepared, batches)
    _, two = linears(prepared)
    observed = two.args[1]
    with Walk(prepared, batches) as walk:
        walk.advance(two)
        place = prepared.two
        place._parameters["weight"] = nn.Parameter(place.weight.detach() * 2)
        walk.forget([prepared.get_submodule(str(observed.target))])
        found = walk.finish()
    assert_same(found["float"], expected)  # it reads what was there at the beginning
    assert_same(found["rounded"], calls(convert_pt2e(prepared), batches))


def test_a_replay_leaves_the_walk_where_it_is() -> None:
    batches = [(torch.randn(3, 8),) for _ in range(2)]
    prepared = ready(Chain().eval(), batches, SmallQuantizer())
    one, two = linears(prepared)
    with Walk(prepared, batches) as walk:
        walk.advance(one)
        taps = Taps.on([two])
        lane = walk.lanes["float"]
        first = [row[two] for row in walk.replay([two], lane, taps=taps)]
        assert [call.result for call in taps.calls[two]] == first
        again = [row[two] for row in walk.replay([two], lane)]
        mixed = [row[two] for row in walk.replay([two], walk.lanes["rounded"], of="float")]
        assert_same(first, again)
        assert not torch.equal(first[0], mixed[0])
        found = walk.finish()
    assert_same(found["float"], calls(prepared, batches))
    assert_same(found["rounded"], calls(convert_pt2e(prepared), batches))


@pytest.mark.parametrize("kind", STATEFUL)
def test_a_replay_moves_no_state(kind: type[Stateful]) -> None:
    batches = steps()
    prepared = ready(kind().eval(), batches, SmallQuantizer())
    first, *_ = linears(prepared)
    with Walk(prepared, batches) as walk:
        walk.advance(first)
        end = walk.schedule.nodes[-1]
        replayed = [copy.deepcopy(row[end]) for row in walk.replay([end], walk.lanes["float"])]
        assert_same(replayed, walk.finish()["float"])


def test_taps_see_calls_inside_bodies() -> None:
    kind = MODELS[1]  # a loop that calls its linear three times
    prepared = prepare_pt2e(exported(kind), SmallQuantizer())
    calls(prepared, [(x,) for x in inputs()])
    with Walk(prepared, inputs()) as walk:
        body = next(m for m in walk.program.schedules if m is not prepared and linears(m))
        (inner,) = linears(body)
        taps = Taps.on([inner])
        end = walk.schedule.nodes[-1]
        seen = [len(taps.take()[inner]) for _ in walk.replay([end], walk.lanes["float"], taps=taps)]
    assert seen == [3] * len(inputs())
