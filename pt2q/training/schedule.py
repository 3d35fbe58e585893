"""Tools for quantization-aware training: what to freeze and when, batch statistics anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
from pt2q.observers import disable_fake_quant, disable_observer, enable_fake_quant

__all__ = [
    "QATSchedule",
    "freeze_batch_norm_statistics",
    "reestimate_batch_norm_statistics",
    "unfreeze_batch_norm_statistics",
]


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


@dataclass
class QATSchedule:
    """Says in which step fake quantization starts, and ranges and statistics stop to move.

    Call `step` once before every training step. The schedule has a state dict, as an optimizer
    has; the model's own checkpoint holds all else.

    Args:
        model: a prepared module.
        fake_quant_from: before this step, observers watch and nothing is rounded.
        freeze_observers_after: after that many steps, ranges stay; None: never.
        freeze_statistics_after: after that many steps, batch-norm statistics stay; None: never.
        steps: how many steps were taken.
    """

    model: nn.Module
    fake_quant_from: int = 0
    freeze_observers_after: int | None = None
    freeze_statistics_after: int | None = None
    steps: int = 0

    def step(self) -> None:
        """Make the switches that are due at this step."""
        if self.fake_quant_from > 0 and self.steps == 0:
            self.model.apply(disable_fake_quant)
        if self.fake_quant_from > 0 and self.steps == self.fake_quant_from:
            self.model.apply(enable_fake_quant)
        if self.steps == self.freeze_observers_after:
            self.model.apply(disable_observer)
        if self.steps == self.freeze_statistics_after:
            freeze_batch_norm_statistics(self.model)
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to hold."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint: switches that were made by then are made again.

        Fake-quantize modules know theirs from the model's own state.

        Args:
            state: what `state_dict` gave.
        """
        self.steps = int(state["steps"])
        frozen = self.freeze_statistics_after
        if frozen is not None and self.steps > frozen:
            freeze_batch_norm_statistics(self.model)


# ------------------------------------------------------------------ batch statistics


@contextmanager
def _statistics_of_batches(model: QuantGraphModule, norms: list[BatchNorm]) -> Any:
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
