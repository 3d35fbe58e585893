"""`QuantGraphModule`: the graph module that prepare and convert return.

A `torch.fx.GraphModule` whose ``train`` and ``eval`` switch the operators that behave
differently, that remembers where in the flow it stands, and that can be deep-copied and pickled
without losing node metadata.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from pt2q.ir.graph import named_tensors
from pt2q.ir.modes import switch_mode
from pt2q.ir.module.frozen import freeze_spec, thaw_spec
from pt2q.ir.module.graph_copy import copy_graph, move_metadata
from pt2q.ir.module.pickling import freeze_graph, thaw_graph
from pt2q.ir.record import FlowRecord, Stage
from pt2q.ir.saved_tensors import saved_small
from pt2q.ir.storage import View, restore_views, views_among
from pt2q.ir.torch_private import index_at_rest, pytree

_deferred: ContextVar[bool] = ContextVar("deferred", default=False)


@contextmanager
def deferred_code() -> Iterator[None]:
    """Within it, modules do not generate code; who calls one gets it generated then.

    Generating and compiling the code of a graph costs more than any pass over it, so the flow
    does it once, at its end.
    """
    token = _deferred.set(True)
    try:
        yield
    finally:
        _deferred.reset(token)


def _write_code(model: QuantGraphModule) -> Any:
    with index_at_rest(model.graph):
        return GraphModule.recompile(model)


def _generate_and_forward(self: QuantGraphModule, *args: Any, **kwargs: Any) -> Any:
    _write_code(self)
    return self.forward(*args, **kwargs)


class QuantGraphModule(GraphModule):
    """A graph module on its way from float to quantized.

    Args:
        root: where parameters, buffers and submodules are taken from (not copied).
        graph: what it computes.
        record: its history.
    """

    record: FlowRecord

    def __init__(
        self,
        root: torch.nn.Module,
        graph: Graph,
        class_name: str = "QuantGraphModule",
        record: FlowRecord | None = None,
    ) -> None:
        super().__init__(root, graph, class_name)
        self.record = FlowRecord() if record is None else record
        _keep_persistence(root, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Compute; in training, what autograd keeps of it is kept in few bytes."""
        trains = self.record.stage is Stage.PREPARED_QAT and torch.is_grad_enabled()
        if torch.compiler.is_compiling() or not trains:
            return super().__call__(*args, **kwargs)
        with saved_small():
            return super().__call__(*args, **kwargs)

    def train(self, mode: bool = True) -> QuantGraphModule:
        """Switch batch norms, dropouts and all that behaves differently in training.

        Args:
            mode: True for training, False for evaluation.

        Returns:
            This module.
        """
        super().train(mode)
        switch_mode(self, mode)
        return self

    def recompile(self) -> Any:
        """Bring the code up to date with the graph; under `deferred_code`, at the next call."""
        if not _deferred.get():
            return _write_code(self)
        type(self).forward = _generate_and_forward
        return None

    def __deepcopy__(self, memo: dict[int, Any]) -> QuantGraphModule:
        nodes: dict[Node, Node] = {}
        graph = copy_graph(self.graph, nodes)
        move_metadata([graph], nodes)
        root = torch.nn.Module()
        # Specs of arguments never change, and torch warns when it makes one of a leaf anew.
        memo.update({id(v): v for v in self.__dict__.values() if isinstance(v, pytree.TreeSpec)})
        root.__dict__ = {
            key: copy.deepcopy(value, memo)
            for key, value in self.__dict__.items()
            if key not in ("_graph", "record")
        }
        result = QuantGraphModule(root, graph, record=copy.deepcopy(self.record, memo))
        result.meta = root.__dict__.get("meta", {})
        _copy_hooks(root, result)
        memo[id(self)] = result
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        kept = {k: v for k, v in self.__dict__.items() if k not in ("_graph", "_code", "meta")}
        state = {k: freeze_spec(v) for k, v in kept.items()}
        return _rebuild, (state, freeze_graph(self.graph), views_among(_held_tensors(self)))


def _copy_hooks(source: torch.nn.Module, target: torch.nn.Module) -> None:
    for key, value in source.__dict__.items():
        if "hooks" in key and isinstance(value, dict) and key in target.__dict__ and value:
            target.__dict__[key] = value


def _keep_persistence(root: torch.nn.Module, new: torch.nn.Module) -> None:
    """Buffers kept out of the state dict stay out: GraphModule's copy forgets the flag."""
    sources = dict(root.named_modules(remove_duplicate=False))
    for path, module in new.named_modules(remove_duplicate=False):
        source = sources.get(path)
        if source is None or source is module or not source._non_persistent_buffers_set:
            continue
        module._non_persistent_buffers_set |= source._non_persistent_buffers_set & set(
            module._buffers
        )


def _rebuild(
    state: dict[str, Any], frozen: tuple[Any, list[Any]], views: tuple[View, ...]
) -> QuantGraphModule:
    root = torch.nn.Module()
    root.__dict__ = {k: thaw_spec(v) for k, v in state.items()}
    result = QuantGraphModule(root, thaw_graph(*frozen), record=state.get("record"))
    _copy_hooks(root, result)
    restore_views(_held_tensors(result), views)
    return result


def _held_tensors(model: QuantGraphModule) -> list[torch.Tensor]:
    """Parameters, buffers and what facts keep, in an order that can be told again."""
    held = named_tensors(model)
    return [held[name] for name in sorted(held)] + list(model.record.tensors())
