"""Which statement rules a node.

The most specific one does: about the node itself, then its module's name, then its module's type,
then its operator, then the global one. Among names the longest wins, among types the innermost.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Generic, TypeVar

from torch.fx import Graph, Node

from pt2q.errors import UnmatchedRuleWarning
from pt2q.ir.graph import module_stack
from pt2q.ir.ops import Target
from pt2q.quantizers.toolkit import reasons
from pt2q.quantizers.toolkit.selection.statements import Choice, OperatorStatement, Selection

C = TypeVar("C")


def path_prefixes(path: str) -> Iterator[str]:
    """``a.b.c``, ``a.b``, ``a``: a module and those that hold it, the root left out."""
    while path:
        yield path
        path = path.rpartition(".")[0]


def matches_pattern(path: str, pattern: str) -> bool:
    """Whether a module's path matches a pattern, component by component.

    Args:
        path: as in ``named_modules``.
        pattern: components as in ``fnmatch``: ``blocks.*.mlp``, ``layer*``.
    """
    names, wanted = path.split("."), pattern.split(".")
    return len(names) == len(wanted) and all(map(fnmatchcase, names, wanted))


def resolve(selection: Selection[C], graphs: Mapping[str, Graph]) -> dict[Node, Choice[C]]:
    """Find the statement that rules each call of some graphs.

    Args:
        selection: what the user said.
        graphs: an exported graph by the path "", and those its control flow runs by theirs.

    Returns:
        A choice per ``call_function`` node. Warns, by name, about statements that match none.
    """
    resolver = _Resolver(selection)
    nodes = ((path, node) for path, graph in graphs.items() for node in graph.nodes)
    choices = {n: resolver.choose(n, path) for path, n in nodes if n.op == "call_function"}
    for label in resolver.unmatched():
        warnings.warn(
            f"{label} matches nothing in the model; check the spelling against "
            "exported.module().named_modules() or the targets of the graph",
            UnmatchedRuleWarning,
            stacklevel=3,
        )
    return choices


class _Resolver(Generic[C]):
    """One walk over a graph: each module stack is looked up once."""

    def __init__(self, selection: Selection[C]) -> None:
        self.selection = selection
        self.used: set[str] = set()
        self.patterns = [name for name in reversed(selection.by_name) if "*" in name]
        self.stacks: dict[tuple[tuple[str, str], ...], Choice[C] | None] = {}
        self.operators: dict[Target, OperatorStatement[C]] = {}
        self.labels: dict[Target, list[str]] = {}
        for entry in selection.by_operator:
            # An overload is more specific than a packet, whichever was given first.
            for target in entry.targets:
                self.labels.setdefault(target, []).append(entry.label)
                known = self.operators.get(target)
                if known is None or len(entry.targets) <= len(known.targets):
                    self.operators[target] = entry
        self.everywhere = self._everywhere(selection.global_config())

    def _everywhere(self, config: C | None) -> Choice[C]:
        if config is not None:
            return Choice(config)
        if self.selection.has_everywhere:
            return Choice(None, reasons.GLOBAL_IS_NONE)
        return Choice(None, reasons.NOT_COVERED, stated=False)

    def choose(self, node: Node, path: str = "") -> Choice[C]:
        stack = module_stack(node)
        if stack not in self.stacks:
            self.stacks[stack] = self._by_module(stack)
        found = self.stacks[stack]
        entry = self.operators.get(node.target)  # type: ignore[arg-type]
        if entry is not None:
            self.used.update(self.labels[node.target])  # type: ignore[index]
            if found is None:
                found = self._choice(entry.config, entry.label, by_operator=True)
        name = path + node.name
        if name in self.selection.by_node:
            self.used.add(f"node {name!r}")
            found = self._choice(self.selection.by_node[name], f"node {name!r}", by_operator=True)
        keep = self.selection.node_filter
        if keep is not None and not keep(node):
            return Choice(None, reasons.FILTERED_OUT)
        return self.everywhere if found is None else found

    def _choice(self, config: C | None, label: str, by_operator: bool = False) -> Choice[C]:
        reason = None if config is not None else reasons.SET_TO_NONE.filled(statement=label)
        return Choice(config, reason, by_operator=by_operator)

    def _by_module(self, stack: tuple[tuple[str, str], ...]) -> Choice[C] | None:
        names = self._matching_names(path for path, _ in reversed(stack))
        kinds = self._matching_types(kind for _, kind in reversed(stack))
        if names:
            return self._choice(self.selection.by_name[names[0]], f"module name {names[0]!r}")
        if kinds:
            return self._choice(self.selection.by_type[kinds[0]], f"module type {kinds[0]!r}")
        return None

    def _matching_names(self, paths: Iterable[str]) -> list[str]:
        given = self.selection.by_name
        found = [
            name
            for path in paths
            for prefix in path_prefixes(path)
            for name in (prefix, *self._patterns_for(prefix))
            if name in given
        ]
        self.used.update(f"module name {name!r}" for name in found)
        return found

    def _patterns_for(self, path: str) -> list[str]:
        """The names with a ``*`` that match a path, the last given first."""
        return [name for name in self.patterns if matches_pattern(path, name)]

    def _matching_types(self, kinds: Iterable[str]) -> list[str]:
        given = self.selection.by_type
        found = [k for kind in kinds for k in (kind, kind.rpartition(".")[2]) if k in given]
        self.used.update(f"module type {kind!r}" for kind in found)
        return found

    def unmatched(self) -> list[str]:
        labels = [f"node {name!r}" for name in self.selection.by_node]
        labels += [f"module name {name!r}" for name in self.selection.by_name]
        labels += [f"module type {kind!r}" for kind in self.selection.by_type]
        labels += [entry.label for entry in self.selection.by_operator]
        return [label for label in labels if label not in self.used]
