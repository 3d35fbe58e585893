"""Integers stay integers under quantizers that make tensors of all scalars."""

from __future__ import annotations

import pytest
import torch
from support.small_quantizers import SmallQuantizer
from torch import Tensor, nn
from torch.fx import GraphModule

from pt2q import convert_pt2e, prepare_pt2e, sqnr

pytestmark = pytest.mark.usefixtures("no_gradients")
IDS = torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1]])


class Scalars(SmallQuantizer):
    """Makes a floating point tensor of every scalar, as quantizers of other libraries do."""

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        for count, node in enumerate(list(model.graph.nodes)):
            if node.op != "call_function" or len(node.args) != 2:
                continue
            if not isinstance(node.args[1], int | float) or "aten" not in str(node.target):
                continue
            name = f"_scalar_{count}"
            model.register_buffer(name, torch.tensor(float(node.args[1])))
            with model.graph.inserting_before(node):
                node.args = (node.args[0], model.graph.get_attr(name))
        model.recompile()
        return model


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.linear = nn.Embedding(20, 8), nn.Linear(8, 8)
        self.register_buffer("share", torch.tensor(0.5))

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        positions = torch.arange(ids.shape[1]) + 2
        values = self.linear(self.table(ids * 2 + 1)) * 0.25 + self.table(positions - 1)
        return values, ids + 1, ids * self.share


def test_integers_stay_integers() -> None:
    model = Positions().eval()
    prepared = prepare_pt2e(torch.export.export(model, (IDS,)), Scalars())
    prepared(IDS)
    converted = convert_pt2e(prepared)
    wanted, found = model(IDS), converted(IDS)
    assert sqnr(wanted[0], found[0]) > 25
    assert torch.equal(wanted[1], found[1]) and found[1].dtype == torch.int64
    assert torch.equal(wanted[2], found[2])  # the model's own constant, in floating point
