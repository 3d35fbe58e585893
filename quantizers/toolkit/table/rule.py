"""Rules: which chains of operators a backend runs quantized, under which conditions.

A rule is a head operator and the operators that may follow it and be fused with it, a tuple of
checks, and a function that annotates. A backend's table is made of rules. Matching starts at the
head and follows single users, so a whole graph is matched in linear time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property

from torch.fx import GraphModule, Node

from pt2q.ir.constants import Constants
from pt2q.ir.ops import BATCH_NORM, Target
from pt2q.quantizers.toolkit.config import Mode, QuantizationConfig
from pt2q.quantizers.toolkit.reading.attention_masks import MaskFinder
from pt2q.quantizers.toolkit.reading.tensor_roles import Roles, roles_of
from pt2q.quantizers.toolkit.reasons import Reason
from pt2q.quantizers.toolkit.selection.statements import Choice
from pt2q.quantizers.toolkit.table.examples import Example
from pt2q.quantizers.toolkit.table.kernel_limits import Fits, KernelLimits


class When(Enum):
    """When a matched operator gains from being quantized.

    ALWAYS: its int8 kernel is much faster, or its weight much smaller: wherever it matches.
    BETWEEN_QUANTIZED: its int8 kernel pays only between quantized neighbours: when an operand
        comes quantized and a reader takes the result quantized.
    INPUT_QUANTIZED: it moves or bounds values, in the parameters of its input: when that input
        is quantized, and a reader takes the result quantized.
    """

    ALWAYS = "always"
    BETWEEN_QUANTIZED = "between quantized operators"
    INPUT_QUANTIZED = "in the parameters of its input"


@dataclass(frozen=True, kw_only=True)
class Context:
    """What checks may look at beside the match itself.

    Args:
        model: the module that owns the graph, for constants.
        masks: tells attention masks from other tensors.
        fits: what kernels take of configurations.
    """

    model: GraphModule
    masks: MaskFinder
    fits: Fits = field(default_factory=Fits)

    @cached_property
    def constants(self) -> Constants:
        """What of the graph is the same in every call."""
        return Constants(self.model)


@dataclass(frozen=True, kw_only=True)
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

    @cached_property
    def roles(self) -> Roles:
        """What each tensor is to the head."""
        return roles_of(self.head)

    @cached_property
    def activations(self) -> tuple[Node, ...]:
        """The activations of the head that are single floating point tensors."""
        return self.roles.float_activations

    @property
    def config(self) -> QuantizationConfig:
        """How the user wants it quantized, fitted to the kernel."""
        config = self.choice.config
        assert config is not None, "nodes without a configuration are not matched"
        return config


Check = Callable[[Match], Reason | None]
"""Looks at a match; returns why it stays in float, or None."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One row of a backend's table.

    Args:
        name: what the row is called, in the report and in messages.
        heads: the operators it starts at.
        tails: what may follow, each set optional, in this order; every node before the last
            must have a single user.
        where: which calls of the heads the row is about; None is all of them.
        kernel: what the runtime's kernel takes; None for a row that takes what it is given.
        annotate: writes the annotations of a match.
        checks: all must pass.
        modes: of the configurations it holds for.
        when: when quantizing gains anything.
        examples: small programs that the row quantizes, for its tests.
        output_counts: a graph output counts as a reader; False where there is no int8 kernel,
            only values passed through.
    """

    name: str
    heads: frozenset[Target]
    tails: tuple[frozenset[Target], ...] = ()
    where: Callable[[Node], bool] | None = None
    kernel: KernelLimits | None = None
    annotate: Callable[[Match], None]
    checks: tuple[Check, ...] = ()
    modes: frozenset[Mode] = frozenset({Mode.STATIC, Mode.QAT})
    when: When = When.ALWAYS
    output_counts: bool = True
    examples: tuple[Example, ...] = ()


def in_training(rule: Rule, *examples: Example) -> Rule:
    """The same row in quantization-aware training, where a batch norm may follow the head.

    Args:
        rule: a row for static quantization.
        examples: programs in which a batch norm follows.
    """
    return replace(
        rule,
        name=f"{rule.name} in training",
        tails=(BATCH_NORM, *rule.tails),
        modes=frozenset({Mode.QAT}),
        examples=examples,
    )
