"""Long chains of an exported network, without exporting them: capture alone would take minutes."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node


@dataclass(frozen=True)
class Tiled:
    """Stands for the exported program of a chain.

    Args:
        link: the exported program of one link: one tensor in, one of the same shape out.
        times: how often it follows itself, with weights of its own each time.
    """

    link: torch.export.ExportedProgram
    times: int

    def module(self, check_guards: bool = False) -> GraphModule:
        """The chain as a graph module; of one link it is what the program gives."""
        link = self.link.module(check_guards=check_guards)
        return link if self.times == 1 else chained(link, self.times)


def chained(link: GraphModule, times: int) -> GraphModule:
    """A graph module that computes ``link(link(...(x)))``, each call with its own weights."""
    graph, root = Graph(), nn.Module()
    value: Node | None = None
    for index in range(times):
        root.add_module(f"link_{index}", weights_of(link))
        value = append(graph, link, f"link_{index}", value)
    graph.output((value,))
    graph.set_codegen(copy.deepcopy(link.graph._codegen))
    return GraphModule(root, graph)


def weights_of(module: nn.Module) -> nn.Module:
    """A module tree with copies of the parameters of another one, and nothing else."""
    result = nn.Module()
    for name, parameter in module._parameters.items():
        if parameter is not None:
            result.register_parameter(name, nn.Parameter(parameter.detach().clone()))
    for name, child in module.named_children():
        result.add_module(name, weights_of(child))
    return result


def append(graph: Graph, link: GraphModule, path: str, start: Node | None) -> Node:
    """Copy the graph of a link behind ``start`` (None: as the first); return what it gives."""
    copies: dict[Node, Node] = {}
    for node in link.graph.nodes:
        if node.op == "output":
            return copies[node.all_input_nodes[0]]
        if node.op == "placeholder" and start is not None:
            copies[node] = start
            continue
        copies[node] = copied(graph, node, copies, path)
    raise ValueError("the graph of a link has no output")


def copied(graph: Graph, node: Node, copies: dict[Node, Node], path: str) -> Node:
    result: Any = graph.node_copy(node, copies.__getitem__)
    result.meta = dict(node.meta)
    if node.op == "get_attr":
        result.target = f"{path}.{node.target}"
    return result
