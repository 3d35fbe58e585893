"""What happened to a module so far: it travels with its copies and pickles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch.fx import GraphModule, Node

T = TypeVar("T")


class Stage(Enum):
    """Where in the flow a module stands."""

    FLOAT = "float"
    PREPARED = "prepared"
    PREPARED_QAT = "prepared for QAT"
    CONVERTED = "converted"


@dataclass(frozen=True)
class Note:
    """One thing a pass wants known: what, at which node, and why.

    Args:
        origin: the pass.
        node: the node's name.
        text: the reason.
    """

    origin: str
    node: str
    text: str

    def __str__(self) -> str:
        return f"[{self.origin}] {self.node}: {self.text}"


@runtime_checkable
class HoldsTensors(Protocol):
    """A fact that keeps tensors, whose views of each other a pickle has to keep."""

    def tensors(self) -> list[torch.Tensor]:
        """Those tensors, in an order that can be told again."""
        ...


@dataclass
class FlowRecord:
    """What happened to a module so far; travels with copies and pickles.

    Args:
        stage: where in the flow the module stands.
        notes: what passes decided, or declined, by node.
        facts: what one pass leaves for a later one, by its class; see `put` and `get`.
        ran: of a graph that control flow runs in a prepared model: it ran at least once.
    """

    stage: Stage = Stage.FLOAT
    notes: list[Note] = field(default_factory=list)
    facts: dict[type, Any] = field(default_factory=dict)
    ran: bool = False

    def note(self, origin: str, node: str, text: str) -> None:
        """Add a note."""
        self.notes.append(Note(origin, node, text))

    def put(self, fact: object) -> None:
        """Keep a fact; it takes the place of an earlier one of its class."""
        self.facts[type(fact)] = fact

    def get(self, kind: type[T]) -> T | None:
        """The fact of a class, or None if nothing left one."""
        found: T | None = self.facts.get(kind)
        return found

    def take(self, kind: type[T]) -> T | None:
        """The fact of a class, which is forgotten here; None if nothing left one."""
        found: T | None = self.facts.pop(kind, None)
        return found

    def tensors(self) -> Iterator[torch.Tensor]:
        """What facts keep of tensors, in an order that can be told again."""
        for fact in self.facts.values():
            if isinstance(fact, HoldsTensors):
                yield from fact.tensors()

    def at_stage(self, stage: Stage) -> FlowRecord:
        """A record that goes on from this one, which stays as it is.

        Args:
            stage: of the new record.
        """
        return FlowRecord(stage, list(self.notes), dict(self.facts))


def record_of(model: object) -> FlowRecord | None:
    """The record of a module; None for one that keeps none, as export gives it."""
    found = getattr(model, "record", None)
    return found if isinstance(found, FlowRecord) else None


def stage_of(model: object) -> Stage:
    """Where in the flow a module stands; one without a record is float."""
    record = record_of(model)
    return Stage.FLOAT if record is None else record.stage


def note(model: GraphModule, origin: str, node: Node, reason: str) -> None:
    """Put on record why a node stays as it is; a plain module keeps no record.

    Args:
        model: the module that owns the node's graph.
        origin: the pass.
        node: the node.
        reason: why.
    """
    record = record_of(model)
    if record is not None:
        record.note(origin, node.name, reason)
