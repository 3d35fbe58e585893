"""The one place that makes nodes, and the rule that there is no other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.nodes import nodes_of
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import Dim

from pt2q import QuantGraphModule
from pt2q.ir import ops
from pt2q.ir.emit import Emitter, computed
from pt2q.ir.graph import dump
from pt2q.ir.module import import_exported

ROOT = Path(__file__).parents[2]
RULE = ROOT / ".ci" / "one_emitter.py"


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).relu()


def imported() -> QuantGraphModule:
    program = torch.export.export(
        Small(), (torch.randn(2, 4),), dynamic_shapes=({0: Dim("batch", max=64)},)
    )
    return import_exported(program)


@pytest.fixture
def model() -> QuantGraphModule:
    return imported()


def test_a_call_gets_what_the_operator_gives(model: QuantGraphModule) -> None:
    (linear,) = nodes_of(model, ops.LINEAR)
    emit = Emitter(model, "test").after(linear)
    turned = emit.call(ops.aten.transpose.int, linear, 0, 1)
    copy = emit.call(ops.aten.clone.default, turned, memory_format=torch.contiguous_format)
    batch = linear.meta["val"].shape[0]
    assert turned.meta["val"].shape == copy.meta["val"].shape == (3, batch)
    assert turned.meta["val"].stride() == (1, 3)
    assert copy.meta["val"].stride() == (batch, 1)
    assert [linear.next, turned.next] == [turned, copy]  # in the order in which they were made
    assert emit.made == [turned, copy]


def test_a_node_has_the_metadata_of_what_it_stands_for(model: QuantGraphModule) -> None:
    (linear,) = nodes_of(model, ops.LINEAR)
    (relu,) = nodes_of(model, ops.RELU)
    new = Emitter(model, "test").before(relu, origin=linear).call(ops.aten.neg.default, linear)
    assert new.meta["nn_module_stack"] == linear.meta["nn_module_stack"]
    assert new.meta["stack_trace"] == linear.meta["stack_trace"]
    (source,) = new.meta["from_node"]
    assert (source.name, source.pass_name) == (linear.name, "pt2q.test")
    assert source.from_node == linear.meta["from_node"]


def test_symbolic_numbers_are_no_trouble(model: QuantGraphModule) -> None:
    (linear,) = nodes_of(model, ops.LINEAR)
    emit = Emitter(model, "test").after(linear)
    rows = emit.size(linear, 0)
    assert isinstance(rows, torch.fx.Node) and emit.size(linear, 1) == 3
    ones = emit.call(ops.aten.new_ones.default, linear, [rows, 3])
    assert ones.meta["val"].shape == linear.meta["val"].shape


def test_constants_are_stored_under_free_names(model: QuantGraphModule) -> None:
    (linear,) = nodes_of(model, ops.LINEAR)
    emit = Emitter(model, "test").before(linear)
    new = emit.constant("linear.weight", torch.arange(3))
    assert new.target == "linear.weight_1"
    assert torch.equal(model.get_buffer("linear.weight_1"), torch.arange(3))
    value = new.meta["val"]
    assert isinstance(value, FakeTensor) and value.fake_mode is linear.meta["val"].fake_mode
    assert (value.shape, value.dtype) == ((3,), torch.int64)
    assert emit.keep("hidden", torch.zeros(1), persistent=False) == "hidden"
    assert "hidden" not in model.state_dict() and "linear.weight_1" in model.state_dict()


def test_what_has_no_value_gets_none() -> None:
    assert computed(ops.aten.add.Tensor, (1, 2), {}) is None


def test_replacing(model: QuantGraphModule) -> None:
    (relu,) = nodes_of(model, ops.RELU)
    emit = Emitter(model, "test").before(relu)
    emit.replace_by(emit.cast(emit.cast(relu.args[0], torch.float64), torch.float64))
    model.graph.lint()
    assert "return [%to_dtype]" in dump(model) and not nodes_of(model, ops.RELU)


# ------------------------------------------------------------------------------------ the rule


def look(*arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(RULE), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_nothing_else_makes_nodes() -> None:
    found = look()
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "call",
    [
        "graph.create_node('get_attr', 'a')",
        "self.model.graph.call_function(target, (x,))",
        "graph.output(x)",
        "new.placeholder('x')",
    ],
)
def test_a_planted_call_is_found(tmp_path: Path, call: str) -> None:
    (tmp_path / "planted.py").write_text(f"def write(graph):\n    return {call}\n")
    (tmp_path / "innocent.py").write_text("node.op == 'get_attr' and bn.output\n")
    found = look(tmp_path)
    assert found.returncode == 1
    (line,) = found.stdout.splitlines()
    assert line.startswith(f"{tmp_path / 'planted.py'}:2: .")
