"""Rules: which chains of operators a backend runs quantized, under which conditions.

A rule is a head operator and the operators that may follow it and be fused with it, a tuple of
checks, and a function that annotates. A quantizer is a table of rules, which
`pt2q.quantizers.toolkit.engine` applies. Matching starts at the head and follows single users, so
a whole graph is matched in linear time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum

from torch.fx import GraphModule, Node

from pt2q.ir.ops import Target, is_op
from pt2q.quantizers.toolkit.config import QuantizationConfig
from pt2q.quantizers.toolkit.masks import MaskFinder
from pt2q.quantizers.toolkit.selection import Choice


class Kind(Enum):
    """When a matched operator is worth quantizing.

    ALWAYS: its int8 kernel is much faster, or its weight much smaller: wherever it matches.
    JOINING: its int8 kernel pays only between quantized neighbours: when an operand comes
        quantized and a reader takes the result quantized.
    CARRYING: it moves or bounds values, in the parameters of its input: when that input is
        quantized, and a reader takes the result quantized.
    """

    ALWAYS = "always"
    JOINING = "joining"
    CARRYING = "carrying"


@dataclass(frozen=True)
class Context:
    """What checks may look at beside the match itself.

    Args:
        model: the module that owns the graph, for constants.
        masks: tells attention masks from other tensors.
    """

    model: GraphModule
    masks: MaskFinder


@dataclass(frozen=True)
class Match:
    """A place in a graph where a rule applies.

    Args:
        rule: the rule.
        nodes: the head and what is fused with it, in order.
        choice: what the user said about the head.
        context: of the graph.
    """

    rule: Rule
    nodes: tuple[Node, ...]
    choice: Choice[QuantizationConfig]
    context: Context

    @property
    def head(self) -> Node:
        """The operator that reads the inputs."""
        return self.nodes[0]

    @property
    def last(self) -> Node:
        """The operator whose output leaves the chain."""
        return self.nodes[-1]

    @property
    def config(self) -> QuantizationConfig:
        """How the user wants it quantized."""
        config = self.choice.config
        assert config is not None, "nodes without a configuration are not matched"
        return config


Check = Callable[[Match], str | None]
"""Looks at a match; returns the reason, for the user, why it stays in float, or None."""


@dataclass(frozen=True)
class Rule:
    """One row of a quantizer's table.

    Args:
        name: for messages.
        heads: the operators it starts at.
        annotate: writes the annotations of a match.
        tails: what may follow, each set optional, in this order; every node before the last
            must have a single user.
        checks: all must pass.
        kind: when quantizing is worth while.
        ends_at_output: a graph output counts as a reader (for `Kind.JOINING` and
            `Kind.CARRYING`); False where there is no int8 kernel, only values passed through.
    """

    name: str
    heads: frozenset[Target]
    annotate: Callable[[Match], None]
    tails: tuple[frozenset[Target], ...] = ()
    checks: tuple[Check, ...] = ()
    kind: Kind = Kind.ALWAYS
    ends_at_output: bool = True


def next_in_chain(node: Node, ops: frozenset[Target]) -> Node | None:
    """The single user of ``node``, if it is one of ``ops`` and works on ``node`` first."""
    if len(node.users) != 1:
        return None
    user = next(iter(node.users))
    if not is_op(user, ops) or not user.args or user.args[0] is not node:
        return None
    return user


def follow_chain(
    head: Node, tails: Iterable[frozenset[Target]], accept: Callable[[Node], bool] | None = None
) -> tuple[Node, ...]:
    """Walk from a head through optional followers.

    Args:
        head: the first node.
        tails: one set of operators per step; a step that does not match is passed over.
        accept: asked about every follower; False passes the step over.

    Returns:
        The head and the followers found.
    """
    nodes = [head]
    for ops in tails:
        found = next_in_chain(nodes[-1], ops)
        if found is not None and (accept is None or accept(found)):
            nodes.append(found)
    return tuple(nodes)


@dataclass
class RuleTable:
    """Rules by head operator.

    Args:
        rules: the first that matches and passes its checks wins.
    """

    rules: tuple[Rule, ...]
    by_target: dict[Target, list[Rule]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for rule in self.rules:
            for target in rule.heads:
                self.by_target.setdefault(target, []).append(rule)

    def rules_for(self, node: Node) -> list[Rule]:
        """The rules that start at a node's operator, in order."""
        return self.by_target.get(node.target, [])  # type: ignore[arg-type]
