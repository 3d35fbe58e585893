"""What a user says about which nodes are quantized: by name, by type, by operator, everywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch.fx import Node

from pt2q.errors import SpecError
from pt2q.ir.ops import Target, functional_operators
from pt2q.quantizers.toolkit.reasons import Reason

C = TypeVar("C")

NodeFilter = Callable[[Node], bool]


@dataclass(frozen=True)
class Choice(Generic[C]):
    """What the user said about one node.

    Args:
        config: how to quantize it, None to leave it in float.
        reason: why it stays in float, where `config` is None.
        stated: False if nothing was said about it.
        by_operator: the statement named the operator itself.
    """

    config: C | None
    reason: Reason | None = None
    stated: bool = True
    by_operator: bool = False


@dataclass(frozen=True)
class OperatorStatement(Generic[C]):
    """What the user said about an operator.

    Args:
        given: the operator as the user named it.
        targets: the overloads it means.
        config: how to quantize them, None to leave them in float.
    """

    given: Any
    targets: frozenset[Target]
    config: C | None

    @property
    def label(self) -> str:
        """The statement in words."""
        return f"operator type {self.given}"

    @property
    def name(self) -> str:
        """The same in every process: a function of torch is named by its overloads."""
        return f"operator type {', '.join(sorted(map(str, self.targets)))}"


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


@dataclass
class Selection(Generic[C]):
    """The user's statements, in the order of their precedence.

    Args:
        default: the configuration used everywhere if the user gives none at all.
    """

    default: C | None = None
    by_node: dict[str, C | None] = field(default_factory=dict)
    by_name: dict[str, C | None] = field(default_factory=dict)
    by_type: dict[str, C | None] = field(default_factory=dict)
    by_operator: list[OperatorStatement[C]] = field(default_factory=list)
    everywhere: C | None = None
    has_everywhere: bool = False
    node_filter: NodeFilter | None = None

    def set_global(self, config: C | None) -> None:
        """Say how to quantize what nothing else is said about."""
        self.everywhere = config
        self.has_everywhere = True

    def set_node_name(self, name: str, config: C | None) -> None:
        """Say how to quantize one operator, by the name of its node in the graph.

        Raises:
            SpecError: the name is empty.
        """
        if not isinstance(name, str) or not name:
            raise SpecError(f"set_node_name: a node is named by a string, found {name!r}")
        self.by_node[name] = config

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
        self.by_operator.append(OperatorStatement(operator_type, targets, config))

    def configs(self) -> tuple[C, ...]:
        """Every configuration that some node may get, each once."""
        given = [*self.by_node.values(), *self.by_name.values(), *self.by_type.values()]
        given += [e.config for e in self.by_operator]
        given.append(self.global_config())
        return tuple(dict.fromkeys(c for c in given if c is not None))

    def statements(self) -> Iterator[tuple[str, C | None]]:
        """What is said, in words, with what was said of it; the most specific first."""
        yield from ((f"node {name}", config) for name, config in self.by_node.items())
        yield from ((f"module {name}", config) for name, config in self.by_name.items())
        yield from ((f"module type {name}", config) for name, config in self.by_type.items())
        yield from ((statement.name, statement.config) for statement in self.by_operator)
        yield "everything else", self.global_config()

    def stated_operators(self) -> frozenset[Target]:
        """The operators that some statement names."""
        return frozenset().union(*(e.targets for e in self.by_operator))

    def global_config(self) -> C | None:
        """The configuration of what nothing is said about; None leaves it in float."""
        if self.has_everywhere:
            return self.everywhere
        given = [*self.by_node.values(), *self.by_name.values(), *self.by_type.values()]
        given += [e.config for e in self.by_operator]
        return self.default if all(config is None for config in given) else None
