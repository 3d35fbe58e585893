"""Blocks: layers that follow each other, up to a place where one value alone goes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch.fx import Node

from pt2q.algorithms.engine import Program, Schedule
from pt2q.algorithms.layers import Layer


@dataclass(frozen=True)
class Block:
    """Layers whose weights act on one value.

    Args:
        layers: in the order of the graph.
        end: the value, behind all that stands between the last layer and the next block.
    """

    layers: tuple[Layer, ...]
    end: Node

    @property
    def name(self) -> str:
        """The layers' names."""
        return ", ".join(layer.name for layer in self.layers)


def find_blocks(program: Program, layers: Sequence[Layer], most: int) -> list[Block]:
    """Part layers into blocks.

    Args:
        program: the model.
        layers: called once each, in its outermost graph, in order.
        most: a block has no more layers, unless it cannot be cut.

    Returns:
        Blocks in the order of the graph. What stands after the last cut is in none.
    """
    schedule = program.schedule
    ends = {at: (node, schedule.position[node]) for at, node in _ends(schedule, layers).items()}
    pieces = list(_pieces([schedule.position[layer.uses[0].node] for layer in layers], ends))
    blocks: list[Block] = []
    start = 0
    for index, (count, end) in enumerate(pieces):
        following = pieces[index + 1][0] if index + 1 < len(pieces) else len(layers) + most
        if following - start > most:
            blocks.append(Block(tuple(layers[start:count]), end))
            start = count
    return blocks


def _pieces(places: Sequence[int], ends: dict[int, tuple[Node, int]]) -> Iterator[tuple[int, Node]]:
    """How many layers lie before a cut, for the last cut before each layer, with its value.

    A value from before the layer is no end: it goes on past a layer whose result nobody reads.
    """
    for count, place in enumerate(places, 1):
        following = places[count] if count < len(places) else max(ends, default=-1)
        cuts = [at for at, (_, made) in ends.items() if place < at <= following and made >= place]
        if cuts:
            yield count, ends[max(cuts)][0]


def _ends(schedule: Schedule, layers: Sequence[Layer]) -> dict[int, Node]:
    """The positions before which one value alone that depends on layers is still to be read."""
    calls = {layer.uses[0].node for layer in layers}
    depends: set[Node] = set()
    for node in schedule.nodes:
        if node in calls or any(n in depends for n in node.all_input_nodes):
            depends.add(node)
    found: dict[int, Node] = {}
    alive: set[Node] = set()
    for node in schedule.nodes:
        at = schedule.position[node]
        if node.op == "output":
            break
        if node in depends:
            alive.add(node)
        alive -= {n for n in (*node.all_input_nodes, node) if schedule.last_read[n] <= at}
        if len(alive) == 1:
            found[at + 1] = next(iter(alive))
    return found
