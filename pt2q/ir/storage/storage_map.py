"""Which nodes share storage, and who writes into it: the one analysis that says so.

An observer is an identity, but the quantize and dequantize that replace it make a new tensor at
one moment. Where storage is written later, that moment matters; and what is written is no constant,
whoever asks: folding batch norms, fusing for training, folding constants, keeping state.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Graph, Node

from pt2q.ir.control_flow import is_control_flow
from pt2q.ir.storage.effects import may_write
from pt2q.ir.storage.reader import Reading, read


def writes_nothing(graph: Graph) -> bool:
    """Whether no call of a graph writes into a tensor, which is seen without reading it all."""
    calls = (node for node in graph.nodes if node.op == "call_function")
    return not any(may_write(node) or is_control_flow(node) for node in calls)


def written_constants(graph: Graph) -> set[str]:
    """What `StorageMap.written_constants` says; the graph is not read where no call writes."""
    return set() if writes_nothing(graph) else StorageMap.of(graph).written_constants()


@dataclass(frozen=True)
class StorageMap(Reading):
    """Storage of every node of a graph, as the first node that lies in it."""

    @classmethod
    def of(cls, graph: Graph) -> StorageMap:
        """Read a graph once, and the graphs that its control flow runs.

        Args:
            graph: of a module, whose tensors say which constants overlap. Of a body of control
                flow it says what happens in there alone.
        """
        return cls(**vars(read(graph)))

    def is_mutated(self, node: Node) -> bool:
        """Whether the node's storage is written anywhere in the graph."""
        return self.root[node] in self.writers

    def writers_of(self, node: Node) -> list[Node]:
        """The calls that write into the node's storage, in the order of the graph."""
        return self.writers.get(self.root[node], [])

    def last_write(self, node: Node) -> int:
        """The position of the last write into the node's storage, or -1."""
        writers = self.writers_of(node)
        return self.position[writers[-1]] if writers else -1

    def written_later(self, node: Node) -> bool:
        """Whether the node's storage is written by a node that comes after it."""
        return self.last_write(node) > self.position[node]

    def written_constants(self) -> set[str]:
        """Names of constants that the graph writes into, or into what they share storage with."""
        return {str(n.target) for n in self.root if n.op == "get_attr" and self.is_mutated(n)}

    def must_write_through(self, producer: Node, consumer: Node) -> bool:
        """Whether ``consumer`` has to read the very tensor that ``producer`` made.

        It has to if it writes into that and somebody else can see it, or if it gives out a view
        of it and the storage is written after that. A dequantized copy would swallow the write.
        """
        effects = self.effects.get(consumer)
        if effects is None:
            return False
        if producer in effects.written:
            return self._seen_after(producer, consumer)
        return producer in effects.shared and self.written_later(consumer)

    def _seen_after(self, value: Node, writer: Node) -> bool:
        """Whether a write is seen otherwise than through what the writer returns."""
        root, at = self.root[value], self.position[writer]
        if root in self.external:
            return True
        return any(self.position[n] < at < self.last_use.get(n, -1) for n in self.lying_in[root])
