"""Which nodes need which metadata."""

from __future__ import annotations

import pytest
import torch
from support.nodes import node_of
from support.small_quantizers import SmallQuantizer
from support.verifying import converted, prepared
from torch import nn

from pt2q import convert_pt2e, prepare_pt2e, verify
from pt2q.ir import ops

UNLOCATED = """
class Unlocated(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(x + 1.0).relu()
"""


def test_operators_that_stand_in_no_file_need_no_stack_trace():
    scope = {"torch": torch}
    exec(UNLOCATED, scope)
    x = torch.randn(2, 4)
    exported = torch.export.export(scope["Unlocated"]().eval(), (x,))
    added = next(n for n in exported.graph.nodes if ops.is_op(n, ops.ADD))
    assert not added.meta.get("stack_trace")  # or this test shows nothing
    ready = prepare_pt2e(exported, SmallQuantizer())
    ready(x)
    for model in (ready, convert_pt2e(ready), convert_pt2e(ready, True)):
        verify(model, (x,)).raise_if_broken()


@pytest.mark.parametrize("key", ["nn_module_stack", "stack_trace", "from_node", "val"])
def test_each_kind_of_metadata_is_missed(key):
    model = converted()
    node = node_of(model, ops.DEQUANTIZE)
    del node.meta[key]
    assert [v.node for v in verify(model, laws=["metadata"]).violations] == [node.name]


def test_operators_that_export_gives_no_module_need_none():
    ready = prepared()
    added = node_of(ready, ops.ADD)
    del added.meta["nn_module_stack"]  # as for those that unpack a subclass of tensors
    for model in (ready, convert_pt2e(ready)):
        verify(model).raise_if_broken()


class Tagged(torch.Tensor):
    """A subclass that torch makes no deep copy of."""


class Unusual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.tagged = nn.Linear(4, 4), nn.Linear(4, 4)
        self.tagged.weight = nn.Parameter(self.tagged.weight.detach().as_subclass(Tagged))
        self.register_buffer("pattern", torch.eye(4).to_sparse_csr())

    def forward(self, x):
        return torch.sparse.mm(self.pattern, self.tagged(self.linear(x)))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_tensors_without_deep_copies_are_no_violation():
    x = torch.randn(4, 4)
    ready = prepare_pt2e(torch.export.export(Unusual().eval(), (x,)), SmallQuantizer())
    ready(x)
    for model in (ready, convert_pt2e(ready)):
        verify(model, (x,)).raise_if_broken()


def test_operators_that_give_nothing_need_no_value():
    class Cast(nn.Module):
        def forward(self, x):
            return x.half().float() + 1.0

    x = torch.randn(2, 4)
    program = torch.export.export(Cast(), (x,)).run_decompositions()
    asserted = [n for n in program.graph.nodes if "_assert_tensor_metadata" in str(n.target)]
    assert any("val" not in n.meta for n in asserted)  # or this test shows nothing
    ready = prepare_pt2e(program, SmallQuantizer())
    ready(x)
    for model in (ready, convert_pt2e(ready)):
        verify(model, (x,)).raise_if_broken()
