"""Roles, chains and masks: what quantizers ask of a graph."""

from __future__ import annotations

import pytest
import torch
from support.applied_functions import Apply
from support.flow import imported
from support.nodes import node_of
from torch import Tensor, nn
from torch.nn import functional as F

from pt2q.ir.ops import ADD, ADDMM, CAT, CONV2D, LINEAR, RELU, is_op
from pt2q.quantizers import (
    MaskFinder,
    XNNPACKQuantizer,
    roles_of,
)
from pt2q.quantizers.toolkit.reading.chains import follow_chain


def test_roles_come_from_the_schema() -> None:
    layers = nn.Conv2d(2, 2, 1), nn.Linear(3, 3)
    net = Apply(lambda m, x: torch.cat([m[1](m[0](x)), x], 1), *layers)
    model = imported(net, torch.randn(1, 2, 3, 3))
    for ops, weight, bias in (
        (CONV2D, "layers_0_weight", "layers_0_bias"),
        (LINEAR, "layers_1_weight", "layers_1_bias"),
    ):
        roles = roles_of(node_of(model, ops))
        assert roles.weight is not None and roles.weight.name == weight
        assert roles.bias is not None and roles.bias.name == bias
        assert len(roles.activations) == 1
    assert len(roles_of(node_of(model, CAT)).activations) == 2


def test_roles_of_matrix_products() -> None:
    net = Apply(lambda m, x: torch.addmm(m[0].bias, x, m[0].weight), nn.Linear(4, 4))
    roles = roles_of(node_of(imported(net, torch.randn(2, 4)), ADDMM))
    assert roles.weight is not None and roles.weight.op == "get_attr"
    assert roles.bias is not None and [n.name for n in roles.activations] == ["args_0"]


def test_a_chain_ends_where_a_value_is_used_twice() -> None:
    net = Apply(lambda m, x: F.relu(m[0](x)), nn.Conv2d(2, 2, 1))
    model = imported(net, torch.randn(1, 2, 3, 3))
    assert [n.name for n in follow_chain(node_of(model, CONV2D), (RELU,))] == ["conv2d", "relu"]
    net = Apply(lambda m, x: F.relu(y := m[0](x)) + y, nn.Conv2d(2, 2, 1))
    model = imported(net, torch.randn(1, 2, 3, 3))
    assert [n.name for n in follow_chain(node_of(model, CONV2D), (RELU,))] == ["conv2d"]


LOWEST = torch.finfo(torch.float32).min


MASKS = {
    "scaled": lambda m: ((1.0 - m.float()) * LOWEST)[:, None],
    "ten thousand": lambda m: (m.float() - 1) * 10000.0,
    "where": lambda m: torch.where(m > 0, 0.0, LOWEST)[:, None].expand(2, 3, 3),
    "masked_fill": lambda m: torch.zeros(2, 3).masked_fill(m == 0, float("-inf")),
    "causal": lambda m: torch.triu(torch.full((3, 3), float("-inf")), 1),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_are_known_by_how_they_are_built(name: str) -> None:
    net = Apply(lambda _, x, m: torch.sigmoid(x + MASKS[name](m)))
    args = torch.randn(2, 3, 3) if name in ("where", "scaled") else torch.randn(2, 3)
    if name == "causal":
        args = torch.randn(3, 3)
    model = imported(net, args, torch.tensor([[1, 1, 0], [1, 0, 0]]))
    node = [n for n in model.graph.nodes if is_op(n, ADD)][-1]
    finder = MaskFinder(model)
    assert [finder.is_mask(n) for n in node.all_input_nodes] == [False, True]


def test_a_mask_kept_as_a_buffer() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.full((3, 3), float("-inf")).triu(1))
            self.register_buffer("table", torch.randn(3, 3))
            self.fc = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.fc(x) + self.mask) + self.fc(self.fc(x) + self.table)

    quantizer = XNNPACKQuantizer()
    quantizer.annotate(imported(Masked(), torch.randn(3, 3)))
    adds = [row for row in quantizer.report() if row.operator == "aten.add.Tensor"]
    assert adds[0].how.startswith("float: an operand is an attention mask")
    assert [row.quantized for row in adds] == [False, True, True]


def test_large_sizes_and_learned_values_are_no_masks() -> None:
    net = Apply(lambda m, x: m[0](x)[:, 0:] + x * 100.0, nn.Linear(3, 3))
    model = imported(net, torch.randn(2, 3))
    finder = MaskFinder(model)
    assert not any(finder.is_mask(n) for n in node_of(model, ADD).all_input_nodes)
