"""Switch an exported graph between training and evaluation.

Export writes the mode into the graph: a literal ``training`` argument, an update of
``num_batches_tracked`` that is there or not, an attention dropout of 0. Here those literals are
flipped, by schema name, and whatever a switch overwrites is kept in a `ModeRecord`, so that any
number of switches gives back the same graph.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch.fx import GraphModule, Node

from pt2q.ir import ops
from pt2q.ir.modes.batch_counter import (
    count_batches,
    switch_branch_counters,
    zero_momentum_nodes,
)
from pt2q.ir.record import record_of
from pt2q.ir.torch_private import schema_of

META_KEY = "pt2q.mode_record"
"""Where a module without a record of its own keeps it: its deep copies keep their ``meta``."""

MODE_ARGUMENTS = ("training", "train", "use_input_stats")


@dataclass(frozen=True)
class ModeRecord:
    """What the graph in its present mode does not say.

    Args:
        attention_dropout: (node name, p) of attentions whose dropout is 0 in evaluation.
        zero_momentum: batch norms whose momentum really is 0: not a cumulative average, which
            export writes in the same way.
        frozen_statistics: batch norms that stay in evaluation mode while the model trains.
    """

    attention_dropout: tuple[tuple[str, float], ...] = ()
    zero_momentum: frozenset[str] = frozenset()
    frozen_statistics: frozenset[str] = frozenset()


def mode_record(model: GraphModule) -> ModeRecord:
    """The record of a module, empty if it was never switched."""
    record = record_of(model)
    found = model.meta.get(META_KEY) if record is None else record.get(ModeRecord)
    return ModeRecord() if found is None else found


def set_mode_record(model: GraphModule, found: ModeRecord) -> None:
    """Keep a record with the module: it travels with copies."""
    record = record_of(model)
    if record is None:
        model.meta[META_KEY] = found
    else:
        record.put(found)


@lru_cache(maxsize=4096)
def _mode_argument(target: Any) -> str | None:
    """The name of the argument with which an operator is told the mode."""
    schema = schema_of(target)
    names = [a.name for a in schema.arguments] if schema is not None else []
    return next((name for name in MODE_ARGUMENTS if name in names), None)


@lru_cache(maxsize=4096)
def _has_dropout_p(target: Any) -> bool:
    schema = schema_of(target)
    return schema is not None and any(a.name == "dropout_p" for a in schema.arguments)


def _has_no_statistics(node: Node) -> bool:
    """A norm without running statistics uses those of its input in either mode."""
    if ops.has_argument(node, "running_mean"):
        return ops.argument(node, "running_mean") is None
    return "batch_norm" in str(node.target)


def _switch_flag(node: Node, train: bool, frozen: frozenset[str]) -> bool:
    name = _mode_argument(node.target)
    if name is None or _has_no_statistics(node):
        return False
    wanted = train and node.name not in frozen
    if ops.argument(node, name) is wanted:
        return False
    ops.set_argument(node, name, wanted)
    return True


def _switch_attention(node: Node, train: bool, known: dict[str, float]) -> bool:
    p = ops.argument(node, "dropout_p")
    if not train and p != 0.0:
        known[node.name] = p
        ops.set_argument(node, "dropout_p", 0.0)
        return True
    if train and p == 0.0 and node.name in known:
        ops.set_argument(node, "dropout_p", known[node.name])
        return True
    return False


def switch_graph(model: GraphModule, train: bool) -> bool:
    """Switch one graph, not those that its control flow runs.

    Args:
        model: the module that owns it.
        train: True for training, False for evaluation.

    Returns:
        Whether the graph changed.
    """
    record = mode_record(model)
    dropout = dict(record.attention_dropout)
    # Asked before anything is switched: in training mode, a 0 is what the user wrote.
    zeros = record.zero_momentum | zero_momentum_nodes(model.graph)
    changed = False
    for node in model.graph.nodes:
        if node.op != "call_function":
            continue
        changed |= _switch_flag(node, train, record.frozen_statistics)
        if _has_dropout_p(node.target):
            changed |= _switch_attention(node, train, dropout)
    changed |= count_batches(model, zeros)
    changed |= switch_branch_counters(model.graph, train)
    found = replace(record, attention_dropout=tuple(dropout.items()), zero_momentum=zeros)
    if found != record:
        set_mode_record(model, found)
    if changed:
        model.recompile()
    return changed


def switch_dropouts_off(model: torch.nn.Module) -> tuple[str, ...]:
    """Switch what draws random numbers in training to evaluation; batch norms stay as they are.

    Args:
        model: as in `switch_mode`.

    Returns:
        The names of the nodes that did draw.
    """
    found: list[str] = []
    for module in model.modules():
        if isinstance(module, GraphModule):
            found += _dropouts_off(module)
    return tuple(found)


def _dropouts_off(model: GraphModule) -> list[str]:
    record = mode_record(model)
    known = dict(record.attention_dropout)
    changed, drew = False, []
    for node in model.graph.nodes:
        if node.op != "call_function" or ops.has_argument(node, "running_mean"):
            continue
        attention = _has_dropout_p(node.target) and _switch_attention(node, False, known)
        if attention or _switch_flag(node, False, frozenset()):
            changed = True
            drew += [node.name] if attention or _probability(node) else []
    if changed:
        set_mode_record(model, replace(record, attention_dropout=tuple(known.items())))
        model.recompile()
    return drew


def _probability(node: Node) -> bool:
    """Whether it draws at all; recurrent layers call the share that they drop otherwise."""
    given = [ops.argument(node, n) for n in ("p", "dropout") if ops.has_argument(node, n)]
    return any(given) if given else True


def switch_mode(model: torch.nn.Module, train: bool) -> bool:
    """Switch every exported graph in a module, branches of control flow included.

    Args:
        model: an exported, prepared or converted module, or a module that contains some.
        train: True for training, False for evaluation.

    Returns:
        Whether a graph changed; one that did not is not recompiled.
    """
    graphs = [m for m in model.modules() if isinstance(m, GraphModule)]
    # A list, not a generator: every graph is switched, whatever the first one answers.
    return any([switch_graph(graph, train) for graph in graphs])
