"""Each pass on its own, and the runner that checks them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from support.golden import assert_golden_graph, exact, exact_input
from support.nodes import nodes_of
from support.results import assert_same
from support.small_quantizers import (
    ACTIVATION,
    DYNAMIC,
    WEIGHT_PER_TENSOR,
    FunctionQuantizer,
    SmallQuantizer,
    weight_per_channel,
)
from torch import Tensor, nn
from torch.fx import Node

from pt2q import QuantGraphModule, QuantizationAnnotation, convert_pt2e, prepare_pt2e
from pt2q.errors import AnnotationError, GraphLawError
from pt2q.flow import conversion_passes
from pt2q.ir import ops
from pt2q.ir.constants import Constants
from pt2q.ir.graph import Names, dump, is_float_tensor
from pt2q.ir.module import copy_module, import_exported
from pt2q.ir.storage import StorageMap
from pt2q.passes import (
    DuplicateDQPass,
    FoldQuantizedConstants,
    InsertObservers,
    ObserversToQDQ,
    PortNodeMetaForQDQ,
    RemoveUnusedAttributes,
    RemoveUnusedConstants,
    run_passes,
    verified_passes,
)
from pt2q.spec.plan import build_plan
from pt2q.spec.specs import QuantizationSpec

aten = torch.ops.aten


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def imported(model: nn.Module, *inputs: Any) -> QuantGraphModule:
    return import_exported(torch.export.export(model.eval(), inputs))


class Fork(nn.Module):
    """One value with three readers, one of which reads it twice."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + torch.tanh(x) * (x * x)


def annotate_inputs(node: Node) -> QuantizationAnnotation | None:
    if node.op != "call_function":
        return None
    inputs = [n for n in node.all_input_nodes if n.op == "placeholder"]
    return QuantizationAnnotation(dict.fromkeys(inputs, ACTIVATION)) if inputs else None


def calibrated(model: nn.Module, quantizer: Any, *inputs: Any) -> QuantGraphModule:
    ready = prepare_pt2e(torch.export.export(model.eval(), inputs), quantizer)
    ready(*inputs)
    return copy_module(ready, ready.record)


# ------------------------------------------------------------------------------------- the runner


@dataclass(frozen=True)
class Liar:
    """Changes the graph and denies it."""

    def __call__(self, model: QuantGraphModule) -> bool:
        first = nodes_of(model, ops.LINEAR)[0]
        first.replace_all_uses_with(ops.argument(first, "input"))
        return False


@dataclass(frozen=True)
class Vandal:
    """Leaves a node that reads an attribute nobody has."""

    def __call__(self, model: QuantGraphModule) -> bool:
        with model.graph.inserting_before(next(iter(model.graph.nodes))):
            model.graph.create_node("get_attr", "nowhere")
        return True


@pytest.mark.parametrize(
    ("wrong", "text"), [(Liar(), "changed nothing"), (Vandal(), "does not lint|nowhere")]
)
def test_verification_finds(wrong: Any, text: str) -> None:
    model = imported(Fork(), torch.randn(2, 4))
    with verified_passes(), pytest.raises(GraphLawError, match=text):
        run_passes(model, [wrong])


def test_verification_is_off_outside() -> None:
    run_passes(imported(Fork(), torch.randn(2, 4)), [Liar()])
    with verified_passes():
        pass
    run_passes(imported(Fork(), torch.randn(2, 4)), [Liar()])


@pytest.mark.parametrize(
    "step",
    [
        ObserversToQDQ(),
        RemoveUnusedConstants(),
        DuplicateDQPass(),
        PortNodeMetaForQDQ(),
        FoldQuantizedConstants(),
        RemoveUnusedAttributes(),
    ],
    ids=lambda step: type(step).__name__,
)
def test_nothing_to_do_is_said_so(step: Any) -> None:
    model = imported(Fork(), torch.randn(2, 4))
    before = dump(model)
    assert step(model) is False
    assert dump(model) == before
    assert hash(step) == hash(type(step)())


@pytest.mark.parametrize("fold", [True, False])
def test_every_pass_of_conversion_keeps_the_values(fold: bool) -> None:
    x = torch.randn(2, 4)
    model = calibrated(Fork(), SmallQuantizer(), x)
    value = None
    with verified_passes():
        for step in conversion_passes(fold_quantize=fold):
            run_passes(model, [step])
            if isinstance(step, ObserversToQDQ):
                value = model(x)
            elif value is not None:
                assert_same(model(x), value)
    assert value is not None


# -------------------------------------------------------------------------------- duplicate, port


def test_every_reader_gets_its_own_dequantize() -> None:
    x = exact_input(2, 4)
    model = calibrated(exact(Fork()), FunctionQuantizer(annotate_inputs), x)
    run_passes(model, [ObserversToQDQ()])
    value = model(x)
    (dequantize,) = nodes_of(model, ops.DEQUANTIZE)
    assert len(dequantize.users) == 3
    with verified_passes():
        run_passes(model, [DuplicateDQPass()])
    assert_golden_graph("duplicate_dq", model)
    found = nodes_of(model, ops.DEQUANTIZE)
    assert [len(n.users) for n in found] == [1, 1, 1]
    assert len(nodes_of(model, ops.QUANTIZE)) == 1
    assert_same(model(x), value)
    assert DuplicateDQPass()(model) is False


def test_dynamic_parameters_are_not_copied() -> None:
    x = torch.randn(2, 4)
    model = calibrated(nn.ModuleDict({"f": Fork()})["f"], _dynamic_inputs(), x)
    run_passes(model, [ObserversToQDQ(), DuplicateDQPass()])
    assert len(nodes_of(model, ops.DEQUANTIZE)) == 3
    assert len(nodes_of(model, ops.CHOOSE_QPARAMS)) == 1


def _dynamic_inputs() -> FunctionQuantizer:
    def annotate(node: Node) -> QuantizationAnnotation | None:
        found = annotate_inputs(node)
        if found is not None:
            found.input_qspec_map = dict.fromkeys(found.input_qspec_map, DYNAMIC)
        return found

    return FunctionQuantizer(annotate)


def test_dequantizes_move_to_the_module_of_their_reader() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x))

    x = torch.randn(2, 4)
    model = calibrated(Model(), SmallQuantizer(), x)
    run_passes(model, [ObserversToQDQ(), DuplicateDQPass()])
    for node in nodes_of(model, ops.QUANTIZE | ops.DEQUANTIZE):
        node.meta.pop("nn_module_stack")
        node.meta.pop("stack_trace")
    run_passes(model, [PortNodeMetaForQDQ()])
    stacks = {n.name: n.meta["nn_module_stack"] for n in nodes_of(model, ops.LINEAR)}
    one, two = model.graph.find_nodes(op="call_function", target=aten.linear.default)
    for dequantize in two.all_input_nodes:
        if ops.is_op(dequantize, ops.DEQUANTIZE):
            assert dequantize.meta["nn_module_stack"] == stacks[two.name]
    quantize = next(iter(one.users))
    assert quantize.meta["nn_module_stack"] == stacks[one.name]
    first = ops.data_input(ops.data_input(one))
    assert first.meta["nn_module_stack"] == stacks[one.name]  # an input has no module itself
    assert first.meta["stack_trace"] == one.meta["stack_trace"]


# -------------------------------------------------------------------------------------- constants


class Random(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.register_buffer("state", torch.ones(4))

    state: Tensor

    def forward(self, x: Tensor) -> Tensor:
        computed = self.weight.t() * 2
        noise = torch.rand_like(self.weight)
        parts = self.weight.split(2)
        self.state.add_(1)
        return x @ computed + noise.sum() + parts[1].sum() + (self.state * 2) + x.sum()


def test_what_is_known_before_the_model_runs() -> None:
    model = imported(Random(), torch.randn(2, 4))
    constants = Constants(model)
    known = {n.name for n in model.graph.nodes if constants.is_constant(n)}
    assert {"weight", "t", "mul", "split", "getitem_1", "sum_2"} <= known
    assert not {"rand_like", "state", "add_", "mul_1", "sum_1", "x", "sum_3"} & known
    node = next(n for n in model.graph.nodes if n.name == "mul")
    assert torch.equal(constants.value(node), model.weight.t() * 2)
    node = next(n for n in model.graph.nodes if n.name == "getitem_1")
    assert torch.equal(constants.value(node), model.weight[2:])


def test_a_state_that_is_written_is_not_folded() -> None:
    def annotate(node: Node) -> QuantizationAnnotation | None:
        inputs = [n for n in node.all_input_nodes if is_float_tensor(n)]
        return QuantizationAnnotation(dict.fromkeys(inputs, ACTIVATION))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("state", torch.ones(4))

        state: Tensor

        def forward(self, x: Tensor) -> Tensor:
            y = x * self.state
            self.state.add_(1)
            return y

    x = torch.randn(2, 4)
    ready = prepare_pt2e(torch.export.export(Model(), (x,)), FunctionQuantizer(annotate))
    for _ in range(5):
        ready(x)
    ready.state.fill_(1.0)
    done = convert_pt2e(ready)
    for step in range(1, 5):
        torch.testing.assert_close(done(x), x * step, atol=0.1, rtol=0.1)


def test_a_constant_quantized_in_two_ways_is_stored_twice() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            linear = torch.nn.functional.linear
            return linear(linear(linear(x, self.weight), self.weight), self.weight)

    def annotate(node: Node) -> QuantizationAnnotation | None:
        if not ops.is_op(node, ops.LINEAR):
            return None
        spec = WEIGHT_PER_TENSOR if node.name == "linear_1" else weight_per_channel(0)
        return QuantizationAnnotation({ops.argument(node, "weight"): spec})

    x = torch.randn(2, 4)
    ready = prepare_pt2e(torch.export.export(Model(), (x,)), FunctionQuantizer(annotate))
    with verified_passes():
        done = convert_pt2e(ready)
    stored = [n for n, b in done.named_buffers() if b.dtype == torch.int8]
    assert len(stored) == 2
    assert not list(done.parameters())
    assert_same(done(x), convert_pt2e(ready, fold_quantize=False)(x))


def test_what_the_graph_does_not_read_is_dropped() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
            self.unused = nn.Sequential(nn.Linear(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            self.unused(x)
            return self.block(x)

    model = imported(Model(), torch.randn(2, 4))
    (dead,) = [n for n in nodes_of(model, ops.LINEAR) if not n.users]
    model.graph.erase_node(dead)
    with verified_passes():
        run_passes(model, [RemoveUnusedConstants(), RemoveUnusedAttributes()])
    assert sorted(dict(model.named_parameters())) == [
        "block.0.bias",
        "block.0.weight",
        "block.1.bias",
        "block.1.weight",
    ]
    assert "unused" not in dict(model.named_children())


# ---------------------------------------------------------------------------------------- observers


def insert(model: QuantGraphModule, annotate: Any) -> QuantGraphModule:
    FunctionQuantizer(annotate).annotate(model)
    with verified_passes():
        return run_passes(model, [InsertObservers(build_plan(model.graph))])


def test_observers_are_numbered_and_placed_behind_what_they_watch() -> None:
    model = insert(imported(exact(Fork()), exact_input(2, 4)), _all_edges)
    assert_golden_graph("insert_observers", model)
    nodes = list(model.graph.nodes)
    kinds = [n.op for n in nodes]
    assert "call_function" not in kinds[: len(kinds) - kinds[::-1].index("placeholder")]


def _all_edges(node: Node) -> QuantizationAnnotation | None:
    if node.op != "call_function":
        return None
    return QuantizationAnnotation(dict.fromkeys(node.all_input_nodes, ACTIVATION), ACTIVATION)


def test_names_of_the_model_are_not_taken() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("activation_post_process_0", torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.activation_post_process_0

    model = insert(imported(Model(), torch.randn(4)), _all_edges)
    assert torch.equal(model.activation_post_process_0, torch.ones(4))
    assert hasattr(model, "activation_post_process_1")


def test_an_observer_that_is_none_is_refused() -> None:
    spec = QuantizationSpec(torch.int8, lambda **_: nn.Identity(), -128, 127)

    def annotate(node: Node) -> QuantizationAnnotation | None:
        if node.target is not aten.tanh.default:
            return None
        return QuantizationAnnotation({node.args[0]: spec})

    model = imported(Fork(), torch.randn(2, 4))
    with pytest.raises(AnnotationError, match=r"x -> tanh: .* made a Identity.*calculate_qparams"):
        insert(model, annotate)


def test_fresh_names() -> None:
    names = Names({"a", "a_0", "a_2"})
    assert [names.fresh("a"), names.fresh("b"), names.fresh("b")] == ["a_1", "b", "b_1"]
    assert [names.numbered("a") for _ in range(3)] == ["a_3", "a_4", "a_5"]
    assert names.numbered("c") == "c_0"


# ------------------------------------------------------------------------------------------ aliases


class Writes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("state", torch.zeros(2, 4))
        self.register_buffer("row", self.state[1])
        self.register_buffer("apart", torch.zeros(2, 4))

    state: Tensor
    row: Tensor
    apart: Tensor

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.apart
        view = y[:, :2]
        self.state.add_(x)
        view.mul_(2.0)
        return y + self.row + self.apart


def test_who_shares_storage_with_whom() -> None:
    model = imported(Writes(), torch.randn(2, 4))
    storage = StorageMap.of(model.graph)
    node = {n.name: n for n in model.graph.nodes}
    view = next(n for n in model.graph.nodes if n.target is aten.slice.Tensor)
    assert storage.root[node["row"]] is storage.root[node["state"]]
    assert storage.root[node["apart"]] is node["apart"]
    assert storage.root[view] is node["add"]
    assert storage.written_later(node["add"]) and storage.written_later(view)
    assert storage.is_mutated(node["row"]) and not storage.is_mutated(node["apart"])
    assert storage.must_write_through(node["add"], view)
    assert storage.must_write_through(node["state"], node["add_"])
    assert not storage.must_write_through(node["apart"], node["add"])
    assert storage.is_external(node["x"]) and not storage.is_external(view)
