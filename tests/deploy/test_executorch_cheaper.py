"""What a lowering leaves out leaves no trace: the same bytes, and nothing stays replaced."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from executorch.exir.pass_base import ExportPass
from support.lowering import quantized
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from pt2q.deploy.executorch import lower, lowering
from pt2q.deploy.executorch.retracing import gone_through_where_changed
from pt2q.library_output import quiet_python


class Images(nn.Module):
    """In-place activations, a batch norm, fused activations, channels last, a view."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.linear = nn.Linear(36, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.max_pool2d(nn.functional.relu6(self.norm(self.conv(x)), inplace=True), 2)
        return self.linear(y.reshape(1, -1))


class Windows(nn.Module):
    """Views with sizes to be worked out, of what lies in another order, and an attention."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.out = nn.Linear(6, 12), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        q, v = self.project(x.roll(1, 1)).reshape(1, 4, 2, -1).transpose(1, 2).chunk(2, -1)
        mixed = (q @ q.transpose(-1, -2)).softmax(-1) @ v
        return self.out(mixed.permute(0, 2, 1, 3).reshape(1, 4, -1))


class Counts(nn.Module):
    """A buffer that is written, and a body of control flow."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("seen", torch.ones(2, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        self.seen.copy_(self.seen * 0.5 + y)
        bodies = (lambda y: (y * 2).relu() + 1, lambda y: y.exp())
        return torch.cond(x.sum() > 0, *bodies, (y,)) + self.seen


def made(case: str) -> tuple[nn.Module | ExportedProgram, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    if case == "images":
        x = torch.randn(1, 3, 8, 8)
        return quantized(Images().eval(), (x,)), (x,)
    if case == "windows, measured":
        x = torch.randn(1, 4, 6)
        return quantized(Windows().eval(), (x,), dynamic=True), (x,)
    x = torch.randn(2, 4)
    if case == "counts, in float":
        return torch.export.export(Counts().eval(), (x,)), (x,)
    shapes = ({0: torch.export.Dim("batch", max=8)},)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3), nn.Softmax(-1)).eval()
    return torch.export.export(net, (x,), dynamic_shapes=shapes), (x,)


@pytest.mark.parametrize(
    "case", ["images", "windows, measured", "counts, in float", "any batch, in float"]
)
def test_the_same_bytes(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, args = made(case)
    found = lower(model, args, check=False)
    monkeypatch.setattr(lowering, "_cheaper", quiet_python)
    assert found.buffer == lower(model, args, check=False).buffer


def test_all_is_put_back() -> None:
    replaced = [
        (ExportPass, "_fx"),
        (ExportPass, "call"),
        (ExportedProgram, "run_decompositions"),
        (GraphModule, "recompile"),
    ]
    before = [getattr(owner, name) for owner, name in replaced]
    x = torch.randn(2, 4)
    with lowering._cheaper():
        assert all(
            getattr(owner, name) is not one
            for (owner, name), one in zip(replaced, before, strict=True)
        )
    lower(torch.export.export(nn.ReLU(), (x,)), (x,))
    assert [getattr(owner, name) for owner, name in replaced] == before


class Counted(ExportPass):
    """Counts the operators that it goes through."""

    seen = 0

    def call_operator(self, *given: object) -> object:
        self.seen += 1
        return super().call_operator(*given)


@pytest.fixture
def graph() -> GraphModule:
    x = torch.randn(2, 4)
    program = torch.export.export(nn.Sequential(nn.ReLU(), nn.Sigmoid()), (x,))
    module: GraphModule = program.run_decompositions({}).graph_module
    return module


def test_a_graph_is_gone_through_again_where_it_changed(graph: GraphModule) -> None:
    with gone_through_where_changed():
        once = ExportPass()(graph).graph_module
        assert ExportPass()(once).graph_module is once
        own = Counted()
        assert own(once).graph_module is not once  # it may change what it goes through
        assert own.seen == 2
        relu = next(node for node in once.graph.nodes if node.op == "call_function")
        relu.target = torch.ops.aten.sum.dim_IntList
        relu.args = (relu.args[0], [1])
        changed = ExportPass()(once).graph_module
    shapes = [
        tuple(node.meta["val"].shape)
        for node in changed.graph.find_nodes(
            op="call_function", target=torch.ops.aten.sigmoid.default
        )
    ]
    assert shapes == [(2,)]


def known_values(
    graph: GraphModule, change: Callable[[GraphModule], None]
) -> tuple[list[int], ...]:
    """The addresses of the values of operators before and after a change."""
    with gone_through_where_changed():
        first = Counted()(graph).graph_module
        before = [id(node.meta["val"]) for node in first.graph.nodes if node.op != "output"]
        change(first)
        second = Counted()(first).graph_module
        kept = [first, second]
    return before, [id(n.meta["val"]) for n in kept[1].graph.nodes if n.op != "output"]


def test_values_are_kept_up_to_a_change(graph: GraphModule) -> None:
    before, after = known_values(graph, lambda module: None)
    assert before == after
    relu, sigmoid = torch.ops.aten.relu.default, torch.ops.aten.sigmoid.default

    def swap(module: GraphModule) -> None:
        for node in module.graph.find_nodes(op="call_function", target=relu):
            node.target = sigmoid

    before, after = known_values(graph, swap)
    assert before[0] == after[0] and not set(before[1:]) & set(after[1:])
