"""Graphs to annotate by hand."""

from __future__ import annotations

import pytest
import torch
from support.plan_builder import Builder
from torch.fx import Node

aten = torch.ops.aten


@pytest.fixture
def b() -> Builder:
    return Builder()


@pytest.fixture
def line(b: Builder) -> list[Node]:
    """x -> relu -> relu_1 -> ... -> relu_4"""
    nodes = [b.input("x")]
    for _ in range(5):
        nodes.append(b.call(aten.relu.default, nodes[-1]))
    return nodes
