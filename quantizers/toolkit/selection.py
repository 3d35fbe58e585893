"""Which nodes a user wants quantized, and how: by name, by type, by operator, everywhere.

The most specific statement about a node wins: its module's name, then its module's type, then
its operator, then the global one. Among names the longest wins, among types the innermost.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Generic, TypeVar

import torch
from torch.fx import Graph, Node

from pt2q.errors import SpecError, UnmatchedRuleWarning
from pt2q.ir.graph import module_stack
from pt2q.ir.ops import Target, functional_operators

C = TypeVar("C")

NodeFilter = Callable[[Node], bool]


@dataclass(frozen=True)
class Choice(Generic[C]):
    """What the user said about one node.

    Args:
        config: how to quantize it, None to leave it in float.
        origin: who said so, in words, for reports.
        stated: False if nothing was said about it.
        by_operator: the statement named the operator itself.
    """

    config: C | None
    origin: str
    stated: bool = True
    by_operator: bool = False


@dataclass(frozen=True)
class _ByOperator(Generic[C]):
    given: Any
    targets: frozenset[Target]
    config: C | None

    @property
    def label(self) -> str:
        return f"operator type {self.given}"


def type_name(module_type: type | str) -> str:
    """The qualified name that export records for a module's class.

    Args:
        module_type: the class; or its qualified name, its public name in ``torch.nn``, or its
            bare name.
    """
    if isinstance(module_type, str):
        public = module_type.removeprefix("torch.nn.")
        found = getattr(torch.nn, public, None) if public != module_type else None
        if not isinstance(found, type):
            return module_type
        module_type = found
    return f"{module_type.__module__}.{module_type.__qualname__}"


def _is_module_class(given: object) -> bool:
    return isinstance(given, type) and issubclass(given, torch.nn.Module)


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


@dataclass
class Selection(Generic[C]):
    """The user's statements, in the order of their precedence.

    Args:
        default: the configuration used everywhere if the user gives none at all.
    """

    default: C | None = None
    by_name: dict[str, C | None] = field(default_factory=dict)
    by_type: dict[str, C | None] = field(default_factory=dict)
    by_operator: list[_ByOperator[C]] = field(default_factory=list)
    everywhere: C | None = None
    has_everywhere: bool = False
    node_filter: NodeFilter | None = None

    def set_global(self, config: C | None) -> None:
        """Say how to quantize what nothing else is said about."""
        self.everywhere = config
        self.has_everywhere = True

    def set_module_name(self, name: str, config: C | None) -> None:
        """Say how to quantize a module, named as in ``named_modules``, and all it holds.

        A ``*`` in a name stands for any part of one component: ``blocks.*.mlp``.

        Raises:
            SpecError: the name is empty.
        """
        if not isinstance(name, str):
            raise SpecError(f"set_module_name: a module is named by a string, found {name!r}")
        if not name:
            raise SpecError("set_module_name: the root has no name; use set_global for all of it")
        self.by_name[name] = config

    def set_module_type(self, module_type: type | str, config: C | None) -> None:
        """Say how to quantize all modules of a class and what they hold.

        Raises:
            SpecError: this is no class of modules, and no name.
        """
        if not isinstance(module_type, str) and not _is_module_class(module_type):
            raise SpecError(
                f"set_module_type: give a class of modules or its name, found {module_type!r}; "
                "an operator goes to set_operator_type, one module to set_module_name"
            )
        self.by_type[type_name(module_type)] = config

    def set_operator_type(self, operator_type: Any, config: C | None) -> None:
        """Say how to quantize an operator wherever it occurs.

        Raises:
            SpecError: this is no operator, and no function named like one.
        """
        targets = functional_operators(operator_type)
        if not targets or isinstance(operator_type, type):
            raise SpecError(
                f"set_operator_type: {operator_type!r} is not an operator; give an overload or a "
                "packet (torch.ops.aten.linear), a function named like one "
                "(torch.nn.functional.linear), or use set_module_type for a module class"
            )
        self.by_operator = [e for e in self.by_operator if e.targets != targets]
        self.by_operator.append(_ByOperator(operator_type, targets, config))

    def configs(self) -> tuple[C, ...]:
        """Every configuration that some node may get, each once."""
        given = [*self.by_name.values(), *self.by_type.values()]
        given += [e.config for e in self.by_operator]
        given.append(self._global_config())
        return tuple(dict.fromkeys(c for c in given if c is not None))

    def stated_operators(self) -> frozenset[Target]:
        """The operators that some statement names."""
        return frozenset().union(*(e.targets for e in self.by_operator))

    def _global_config(self) -> C | None:
        if self.has_everywhere:
            return self.everywhere
        given = [*self.by_name.values(), *self.by_type.values()]
        given += [e.config for e in self.by_operator]
        return self.default if all(config is None for config in given) else None

    def resolve(self, *graphs: Graph) -> dict[Node, Choice[C]]:
        """Find the statement that rules each call of some graphs.

        Args:
            graphs: an exported graph, and those its control flow runs.

        Returns:
            A choice per ``call_function`` node. Warns, by name, about statements that match none.
        """
        resolver = _Resolver(self, self._global_config())
        nodes = (node for graph in graphs for node in graph.nodes)
        choices = {n: resolver.choose(n) for n in nodes if n.op == "call_function"}
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

    def __init__(self, selection: Selection[C], global_config: C | None) -> None:
        self.selection = selection
        self.used: set[str] = set()
        self.patterns = [name for name in reversed(selection.by_name) if "*" in name]
        self.stacks: dict[tuple[tuple[str, str], ...], Choice[C] | None] = {}
        self.operators: dict[Target, _ByOperator[C]] = {}
        self.labels: dict[Target, list[str]] = {}
        for entry in selection.by_operator:
            # An overload is more specific than a packet, whichever was given first.
            for target in entry.targets:
                self.labels.setdefault(target, []).append(entry.label)
                known = self.operators.get(target)
                if known is None or len(entry.targets) <= len(known.targets):
                    self.operators[target] = entry
        self.everywhere = self._everywhere(global_config)

    def _everywhere(self, config: C | None) -> Choice[C]:
        if config is not None:
            return Choice(config, "the global configuration")
        if self.selection.has_everywhere:
            return Choice(None, "the global configuration is None")
        return Choice(None, "no configuration covers it", stated=False)

    def choose(self, node: Node) -> Choice[C]:
        stack = module_stack(node)
        if stack not in self.stacks:
            self.stacks[stack] = self._by_module(stack)
        found = self.stacks[stack]
        entry = self.operators.get(node.target)  # type: ignore[arg-type]
        if entry is not None:
            self.used.update(self.labels[node.target])  # type: ignore[index]
            if found is None:
                found = self._choice(entry.config, entry.label, by_operator=True)
        keep = self.selection.node_filter
        if keep is not None and not keep(node):
            return Choice(None, "the filter function leaves it out")
        return self.everywhere if found is None else found

    def _choice(self, config: C | None, label: str, by_operator: bool = False) -> Choice[C]:
        origin = label if config is not None else f"{label} is set to None"
        return Choice(config, origin, by_operator=by_operator)

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
        labels = [f"module name {name!r}" for name in self.selection.by_name]
        labels += [f"module type {kind!r}" for kind in self.selection.by_type]
        labels += [entry.label for entry in self.selection.by_operator]
        return [label for label in labels if label not in self.used]
