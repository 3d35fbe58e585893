"""Running statistics of batch norms in training: frozen, and taken anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from pt2q.errors import FlowError
from pt2q.ir import ops
from pt2q.ir.batch_norm import BatchNorm, read_batch_norm
from pt2q.ir.graph import get_constant
from pt2q.ir.modes import count_batches, mode_record, set_mode_record
from pt2q.ir.module import QuantGraphModule


def _norms(model: QuantGraphModule) -> list[BatchNorm]:
    """The batch norms that have running statistics."""
    found = [n for n in model.graph.nodes if ops.is_op(n, ops.BATCH_NORM_IN_TRAINING)]
    return [norm for norm in map(read_batch_norm, found) if norm.running_mean is not None]


def _set_training(model: QuantGraphModule, nodes: list[Node], training: bool) -> None:
    for node in nodes:
        ops.set_argument(node, "training", training)
    count_batches(model, mode_record(model).zero_momentum)
    model.recompile()


def _check(model: object) -> QuantGraphModule:
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    if not isinstance(inner, QuantGraphModule):
        raise FlowError(
            f"expected what prepare_qat_pt2e returned, or that in DistributedDataParallel, found "
            f"{type(inner).__name__}"
        )
    return inner


def freeze_batch_norm_statistics(model: nn.Module) -> None:
    """Let batch norms use their running statistics, and leave them as they are, in training too.

    ``.train()`` and ``.eval()`` keep to it. Late in training this lets the network adapt to the
    statistics that will be deployed (Krishnamoorthi 2018, section 3.2.3).

    Args:
        model: a prepared module.

    Raises:
        FlowError: it is not one.
    """
    graph = _check(model)
    nodes = [norm.node for norm in _norms(graph)]
    names = frozenset(node.name for node in nodes)
    set_mode_record(graph, replace(mode_record(graph), frozen_statistics=names))
    _set_training(graph, nodes, False)


def unfreeze_batch_norm_statistics(model: nn.Module) -> None:
    """Undo `freeze_batch_norm_statistics`.

    Args:
        model: a prepared module.

    Raises:
        FlowError: it is not one.
    """
    graph = _check(model)
    names = mode_record(graph).frozen_statistics
    set_mode_record(graph, replace(mode_record(graph), frozen_statistics=frozenset()))
    if graph.training:
        _set_training(graph, [n.node for n in _norms(graph) if n.node.name in names], True)


@contextmanager
def _statistics_of_batches(model: QuantGraphModule, norms: list[BatchNorm]) -> Iterator[None]:
    """Within it, batch norms leave the statistics of the last batch in their buffers."""
    before = [
        (n.node, ops.argument(n.node, "training"), ops.argument(n.node, "momentum")) for n in norms
    ]
    for node, _, _ in before:
        ops.set_argument(node, "momentum", 1.0)
        ops.set_argument(node, "training", True)
    model.recompile()
    try:
        yield
    finally:
        for node, training, momentum in before:
            ops.set_argument(node, "momentum", momentum)
            ops.set_argument(node, "training", training)
        model.recompile()


@torch.no_grad()
def reestimate_batch_norm_statistics(
    model: nn.Module,
    batches: Iterable[Any],
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> int:
    """Replace running statistics by averages over given batches, weights and ranges as they are.

    After training with rounding, moving averages lag behind the weights, which a 4-bit network
    feels (Nagel et al. 2022, "Overcoming Oscillations in Quantization-Aware Training", section 3).
    Statistics are those of a network in evaluation mode: dropout is off.

    Args:
        model: a prepared module.
        batches: inputs, or tuples whose first element is the input.
        forward: how to call the model with a batch, if otherwise.

    Returns:
        The number of batches seen.

    Raises:
        FlowError: the model is not prepared.
    """
    graph = _check(model)
    training = graph.training
    graph.eval()
    norms = _norms(graph)
    buffers = {
        str(node.target): get_constant(graph, node)
        for norm in norms
        for node in (norm.running_mean, norm.running_var)
        if node is not None
    }
    kept = {name: buffer.clone() for name, buffer in buffers.items()}
    sums = {name: torch.zeros_like(b, dtype=torch.float64) for name, b in buffers.items()}
    seen = 0
    with _statistics_of_batches(graph, norms):
        for batch in batches:
            _call(graph, batch, forward)
            for name, buffer in buffers.items():
                sums[name] += buffer
                buffer.copy_(kept[name])  # the scaled weights stay what they were
            seen += 1
    if seen:
        for name, buffer in buffers.items():
            buffer.copy_(sums[name] / seen)
    graph.train(training)
    return seen


def _call(model: nn.Module, batch: Any, forward: Callable[[nn.Module, Any], Any] | None) -> None:
    if forward is not None:
        forward(model, batch)
    elif isinstance(batch, Tensor):
        model(batch)
    else:
        model(batch[0])
