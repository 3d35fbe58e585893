"""Which nodes share storage and who writes: compared with what running the graph does."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

from pt2q.ir import ops
from pt2q.ir.control_flow import run_cond, run_while_loop
from pt2q.ir.storage import StorageMap, copies, place_of, span_of, storage_of

aten = torch.ops.aten


class Root(nn.Module):
    """Tensors that overlap, or do not."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cache", torch.arange(12.0))
        self.register_buffer("inside", self.cache[2:6])
        self.register_buffer("beside", self.cache[8:])
        self.register_buffer("across", self.cache[5:9])
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("var", torch.ones(2))
        self.register_buffer("alone", torch.zeros(12))
        self.weight = nn.Parameter(torch.ones(3, 4))
        self.register_buffer("row", self.weight.detach()[1])


class Writer:
    """Makes a graph by calls."""

    def __init__(self, root: nn.Module) -> None:
        self.root, self.graph = root, Graph()
        self.x = self.graph.placeholder("x")

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        return self.graph.call_function(target, args, kwargs)

    def read(self, name: str) -> Node:
        return self.graph.get_attr(name)

    def done(self, *results: Node) -> GraphModule:
        self.graph.output(results)
        return GraphModule(self.root, self.graph)


def body(build: Callable[[Writer, Node], Any], count: int = 1) -> GraphModule:
    """A graph of ``count`` inputs for control flow; its first is ``x``."""
    g = Writer(Root())
    rest = [g.graph.placeholder(f"operand_{i}") for i in range(1, count)]
    g.graph.output((build(g, *rest),))
    return GraphModule(g.root, g.graph)


def norm(target: Any, **mode: bool) -> Callable[[Writer], Node]:
    def build(g: Writer) -> Node:
        image = g(aten.view.default, g.x, [2, 2, 3])
        given = [image, None, None, g.read("mean"), g.read("var")]
        if "training" in mode:
            rest = [mode["training"], 0.1, 1e-5]
        else:
            rest = [mode["use_input_stats"], 0.1, 1e-5]
        return g(target, *given, *rest, *([False] if len(target._schema.arguments) > 8 else []))

    return build


def with_bodies(g: Writer, runner: Any, bodies: list[GraphModule], *rest: Any) -> Node:
    reads = []
    for index, module in enumerate(bodies):
        g.root.add_module(f"body_{index}", module)
        reads.append(g.read(f"body_{index}"))
    head, *tail = rest
    if runner is run_cond:
        return g(operator.getitem, g(runner, head, *reads, *tail), 0)
    return g(operator.getitem, g(runner, *reads, head, *tail), 0)


def cond_that_writes(g: Writer) -> Node:
    writes = body(lambda g, b: g(aten.mul_.Tensor, g(aten.view.default, b, [-1]), 2.0), 2)
    reads = body(lambda g, b: g(aten.clone.default, b), 2)
    return with_bodies(g, run_cond, [writes, reads], True, (g.x, g.read("cache")))


def cond_that_trains(g: Writer) -> Node:
    """Its body holds the statistics itself, as bodies of prepared models do."""
    trains = body(norm(aten.batch_norm.default, training=True))
    for name in ("mean", "var"):
        trains._buffers[name] = g.root._buffers[name]
    leaves = body(lambda g: g(aten.clone.default, g.x))
    g.read("mean")
    return with_bodies(g, run_cond, [trains, leaves], True, (g.x,))


def cond_that_gives_an_operand(g: Writer) -> Node:
    gives = body(lambda g: g(aten.view.default, g.x, [3, 4]))
    other = body(lambda g: g(aten.clone.default, g.x))
    result = with_bodies(g, run_cond, [gives, other], True, (g.x,))
    return g(aten.relu_.default, result)


def loop_without_a_step(g: Writer) -> Node:
    never = body(lambda g: g(aten.lt.Scalar, g(aten.sum.default, g.x), float("-inf")))
    step = body(lambda g: g(aten.neg.default, g.x))
    carried = g(aten.clone.default, g.x)
    result = with_bodies(g, run_while_loop, [never, step], (carried,))
    g(aten.add_.Tensor, result, 1.0)
    return carried


PROGRAMS: dict[str, Callable[[Writer], Any]] = {
    "a view of a view": lambda g: g(
        aten.add_.Tensor, g(aten.select.int, g(aten.view.default, g.read("cache"), [3, 4]), 0, 1), 1
    ),
    "out by keyword": lambda g: g(aten.add.out, g.x, g.x, out=g.read("alone")),
    "two outs": lambda g: g(
        aten.max.dim_max,
        g(aten.view.default, g.x, [3, 4]),
        1,
        max=g(aten.slice.Tensor, g.read("alone"), 0, 0, 3),
        max_values=g(aten.argsort.default, g(aten.slice.Tensor, g.x, 0, 0, 3)),
    ),
    "a list of tensors": lambda g: g(aten._foreach_add_.Scalar, [g.x, g.read("inside")], 1.0),
    "one of a list of views": lambda g: g(
        aten.neg_.default, g(operator.getitem, g(aten.split.Tensor, g.read("cache"), 4), 1)
    ),
    "an inner overlap": lambda g: (g.read("cache"), g(aten.zero_.default, g.read("inside"))),
    "a chain of overlaps": lambda g: (g.read("across"), g(aten.zero_.default, g.read("beside"))),
    "neighbours": lambda g: (g.read("inside"), g(aten.zero_.default, g.read("beside"))),
    "a row of a parameter": lambda g: (g.read("weight"), g(aten.zero_.default, g.read("row"))),
    "copy": lambda g: g(aten.copy_.default, g.read("cache"), g.x),
    "shapes in place": lambda g: g(aten.unsqueeze_.default, g.x, 0),
    "detach": lambda g: g(aten.add_.Tensor, g(aten.detach.default, g.read("alone")), 2),
    "nothing": lambda g: g(aten.add.Tensor, g(aten.relu.default, g.x), g.read("cache")),
    "cast to the same": lambda g: g(
        aten.add_.Tensor, g(aten.to.dtype, g.read("cache"), torch.float32), 1
    ),
    "dropout in evaluation": lambda g: g(
        aten.relu_.default, g(aten.dropout.default, g.x, 0.5, False)
    ),
    "einsum of one": lambda g: g(
        aten.zero_.default, g(aten.einsum.default, "ij->ji", [g.read("weight")])
    ),
    "einsum of two": lambda g: g(
        aten.zero_.default, g(aten.einsum.default, "i,i->i", [g.x, g.read("cache")])
    ),
    "broadcast": lambda g: g(
        aten.zero_.default,
        g(operator.getitem, g(aten.broadcast_tensors.default, [g.x, g.read("cache")]), 1),
    ),
    "meshgrid": lambda g: g(
        aten.relu.default,
        g(operator.getitem, g(aten.meshgrid.default, [g.x, g.read("cache")]), 0),
    ),
    "at least": lambda g: g(
        operator.getitem, g(aten.atleast_2d.Sequence, [g.read("cache"), g.x]), 0
    ),
    "unsafe view": lambda g: g(aten.zero_.default, g(aten._unsafe_view.default, g.x, [3, 4])),
    "unsafe split": lambda g: g(
        aten.zero_.default, g(operator.getitem, g(aten.unsafe_split.Tensor, g.x, 4), 2)
    ),
    "batch norm": norm(aten.batch_norm.default, training=True),
    "batch norm in evaluation": norm(aten.batch_norm.default, training=False),
    "native batch norm": norm(aten.native_batch_norm.default, training=True),
    "legit batch norm": norm(aten._native_batch_norm_legit.default, training=True),
    "functional batch norm": norm(aten._native_batch_norm_legit_functional.default, training=True),
    "instance norm": norm(aten.instance_norm.default, use_input_stats=True),
    "instance norm in evaluation": norm(aten.instance_norm.default, use_input_stats=False),
    "a body that writes an operand": cond_that_writes,
    "a body that trains": cond_that_trains,
    "a body that gives an operand": cond_that_gives_an_operand,
    "a loop without a step": loop_without_a_step,
}
# Where the schema does not say which, all of several are taken for what is written or given out.
CAUTIOUS = {"two outs", "shapes in place"}


class Watch(Interpreter):
    """Runs a graph and notes where each tensor lies and which bytes each call changes."""

    def __init__(self, model: GraphModule) -> None:
        super().__init__(model)
        self.values: dict[Node, Tensor] = {}
        self.changed: dict[Node, dict[int, Tensor]] = {}
        self.alive: list[Any] = []

    def run_node(self, n: Node) -> Any:
        storages = {storage_of(t): t for t in pytree.tree_leaves(self.alive)}
        before = {key: whole(tensor).clone() for key, tensor in storages.items()}
        result = super().run_node(n)
        masks = {key: was != whole(storages[key]) for key, was in before.items()}
        self.changed[n] = {key: mask for key, mask in masks.items() if bool(mask.any())}
        self.alive += [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
        if isinstance(result, Tensor) and result.numel():
            self.values[n] = result
        return result

    def overlap(self, one: Node, other: Node) -> bool:
        a, b = self.values[one], self.values[other]
        (low, high), (least, most) = span_of(a), span_of(b)
        return storage_of(a) == storage_of(b) and low < most and least < high

    def changes(self, writer: Node, node: Node) -> bool:
        mask = self.changed[writer].get(storage_of(self.values[node]))
        start, end = span_of(self.values[node])
        return mask is not None and bool(mask[start:end].any())


def whole(tensor: Tensor) -> Tensor:
    """The bytes of a tensor's storage."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())


def run(name: str) -> tuple[GraphModule, Watch]:
    g = Writer(Root())
    made = PROGRAMS[name](g)
    model = g.done(*(made if isinstance(made, tuple) else (made,)))
    watch = Watch(model)
    with torch.no_grad():
        watch.run(torch.linspace(-3, 3, 12))
    return model, watch


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_overlaps_has_one_root(name: str) -> None:
    model, watch = run(name)
    storage = StorageMap.of(model.graph)
    for one in watch.values:
        for other in watch.values:
            if watch.overlap(one, other):
                assert storage.root[one] is storage.root[other], f"{one} and {other}"


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_is_written_is_said_to_be(name: str) -> None:
    model, watch = run(name)
    storage = StorageMap.of(model.graph)
    for node in watch.values:
        for writer in watch.changed:
            if storage.position[node] < storage.position[writer] and watch.changes(writer, node):
                assert writer in storage.writers_of(node), f"{writer} writes into {node}"
                assert storage.written_later(node)


@pytest.mark.parametrize("name", sorted(PROGRAMS.keys() - CAUTIOUS))
def test_nothing_else_is_said_to_be_written(name: str) -> None:
    model, watch = run(name)
    storage = StorageMap.of(model.graph)
    for root, writers in storage.writers.items():
        members = [node for node in watch.values if storage.root[node] is root]
        for writer in writers:
            assert any(watch.changes(writer, node) for node in members), f"{writer} into {root}"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a chain of overlaps", {"across", "beside"}),
        ("an inner overlap", {"cache", "inside"}),
        ("neighbours", {"beside"}),
        ("a row of a parameter", {"row", "weight"}),
        ("batch norm", {"mean", "var"}),
        ("batch norm in evaluation", set()),
        ("native batch norm", {"mean", "var"}),
        ("functional batch norm", set()),
        ("instance norm", {"mean", "var"}),
        ("out by keyword", {"alone"}),
        ("a list of tensors", {"inside"}),
        ("einsum of two", set()),
        ("broadcast", {"cache"}),
        ("a body that writes an operand", {"cache"}),
        ("a body that trains", {"mean"}),
        ("nothing", set()),
    ],
)
def test_the_constants_that_are_written(name: str, expected: set[str]) -> None:
    model, _ = run(name)
    assert StorageMap.of(model.graph).written_constants() == expected


def test_the_fast_batch_norm_moves_its_statistics() -> None:
    g = Writer(Root())
    image = g(aten.view.default, g.x, [2, 2, 3])
    two = g(aten.slice.Tensor, g.x, 0, 0, 2)
    rest = [None, None, None, g.read("mean"), g.read("var")]
    for training, expected in ((True, {"mean", "var"}), (False, set())):
        norm = g(ops.SCALED_BATCH_NORM, image, two, *rest, training, 0.1, 1e-5)
        assert StorageMap.of(g.done(norm).graph).written_constants() == expected
        g.graph.erase_node(g.graph.output_node())
        g.graph.erase_node(norm)


def test_a_write_that_nobody_else_sees_may_go_into_a_copy() -> None:
    g = Writer(Root())
    made = g(aten.mul.Tensor, g.x, 2.0)
    read_before = g(aten.relu.default, made)
    first = g(aten.add_.Tensor, made, 3.0)
    second = g(aten.mul_.Tensor, first, read_before)
    storage = StorageMap.of(g.done(second).graph)
    assert not storage.must_write_through(made, first)
    assert not storage.must_write_through(first, second)


def test_a_write_that_an_earlier_view_shows_reaches_its_tensor() -> None:
    g = Writer(Root())
    made = g(aten.mul.Tensor, g.x, 2.0)
    view = g(aten.t.default, made)
    written = g(aten.add_.Tensor, made, 3.0)
    storage = StorageMap.of(g.done(g(aten.mm.default, written, view)).graph)
    assert storage.must_write_through(made, written)


def test_an_observer_gives_what_it_is_given() -> None:
    g = Writer(Root())
    g.root.add_module("watch", nn.Identity())
    seen = g.graph.call_module("watch", (g.read("cache"),))
    written = g(aten.zero_.default, seen)
    storage = StorageMap.of(g.done(written).graph)
    assert storage.written_constants() == {"cache"}
    assert storage.must_write_through(seen, written)


# --------------------------------------------------------------------------------------- identity


def test_identity_of_storage_and_place() -> None:
    whole = torch.zeros(4, 4)
    row, same, parameter = whole[1], whole[1], nn.Parameter(whole)
    assert storage_of(whole) == storage_of(row) == storage_of(parameter)
    assert place_of(row) == place_of(same) != place_of(whole[2])
    assert place_of(row) != place_of(row.view(2, 2)) != place_of(row.view(torch.int32))
    assert span_of(row) == (16, 32) and span_of(whole.t()[0]) == (0, 52)
    assert span_of(torch.zeros(0, 3)) == (0, 0)
    assert storage_of(whole) != storage_of(whole.clone())
    sparse = whole.to_sparse()
    assert storage_of(sparse) == storage_of(sparse) != storage_of(whole.to_sparse())


def test_copies_share_as_the_originals_do() -> None:
    whole = torch.arange(6.0)
    given = {"whole": whole, "part": whole[2:], "twice": whole, "other": torch.ones(2)}
    made = copies(given)
    assert made["twice"] is made["whole"] is not whole
    made["whole"][3] = 9
    assert made["part"].tolist() == [2, 9, 4, 5] and whole[3] == 3
    assert storage_of(made["other"]) != storage_of(made["whole"])
