"""In which order several programs run as one: side by side, weight by weight.

One after the other would be right, too. Side by side, what a layer reads in one program is near to
what it reads in the others, so that one stop before it serves all.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping

from torch.fx import GraphModule, Node

from pt2q.ir.graph import get_constant, holds_tensor, is_constant, real_readers
from pt2q.ir.storage import StorageMap, storage_of

Programs = Mapping[str, GraphModule]
Spans = dict[int, tuple[int, int]]


def in_order(programs: Programs) -> Iterator[tuple[str, Node]]:
    """All nodes of programs but their outputs, inputs first, each behind what it needs.

    What one program leaves in a buffer, the programs after it read: for each buffer that is
    written, all that a program does with it comes before all that the next one does.

    Args:
        programs: by name, as they are run one after the other.
    """
    starts = _starts(programs)
    rows = []
    for place, (name, model) in enumerate(programs.items()):
        for position, node in enumerate(model.graph.nodes):
            part = bisect_right(starts[name], position)
            if node.op != "output":
                rows.append((node.op != "placeholder", part, place, position, name, node))
    rows.sort(key=lambda row: row[:4])
    return ((name, node) for *_, name, node in rows)


def _starts(programs: Programs) -> dict[str, list[int]]:
    """By program, the positions at which its parts begin; parts of one number go together."""
    reads = {name: _first_reads(model) for name, model in programs.items()}
    common = set.intersection(*(set(found) for found in reads.values()))
    orders = [sorted(common, key=found.__getitem__) for found in reads.values()]
    if any(order != orders[0] for order in orders):
        return {name: [] for name in programs}
    starts = {name: [found[key] for key in orders[0]] for name, found in reads.items()}
    inside = _inside(programs, starts)
    return {
        name: [at for part, at in enumerate(found, 1) if part not in inside]
        for name, found in starts.items()
    }


def _first_reads(model: GraphModule) -> dict[str, int]:
    """Where each constant is first read, seen through observers."""
    position = {node: place for place, node in enumerate(model.graph.nodes)}
    found: dict[str, int] = {}
    for node in model.graph.nodes:
        readers = real_readers(model, node) if is_constant(node) else ()
        if readers and holds_tensor(model, node):
            first = min(map(position.__getitem__, readers))
            found[str(node.target)] = min(first, found.get(str(node.target), first))
    return found


def _inside(programs: Programs, starts: Mapping[str, list[int]]) -> set[int]:
    """The parts that begin while a buffer that is written is in use in some program."""
    spans: Spans = {}
    for name, model in programs.items():
        for storage, position in _uses_of_written(model):
            part = bisect_right(starts[name], position)
            first, last = spans.get(storage, (part, part))
            spans[storage] = min(first, part), max(last, part)
    return {part for first, last in spans.values() for part in range(first + 1, last + 1)}


def _uses_of_written(model: GraphModule) -> Iterator[tuple[int, int]]:
    """The storage of each written constant, with each position at which it is used."""
    storage = StorageMap.of(model.graph)
    for position, node in enumerate(model.graph.nodes):
        for used in (*node.all_input_nodes, node):
            root = storage.root[used]
            if node is not root and is_constant(root) and storage.is_mutated(root):
                yield storage_of(get_constant(model, root)), position
