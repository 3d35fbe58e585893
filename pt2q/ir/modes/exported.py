"""Switch whole models, exported modules anywhere in them included."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch.fx import GraphModule

from pt2q.errors import NotExportedError
from pt2q.ir.modes.switch import switch_graph, switch_mode
from pt2q.ir.record import record_of

ModelT = TypeVar("ModelT", bound=torch.nn.Module)


def _move(model: ModelT, train: bool) -> ModelT:
    if not any(isinstance(m, GraphModule) for m in model.modules()):
        raise NotExportedError(
            f"{type(model).__name__} contains no exported graph; call .train() or .eval() on it, "
            "or capture it first with torch.export.export(model, args).module()"
        )
    switch_mode(model, train)
    for module in model.modules():
        module.training = train
    return model


def move_exported_model_to_eval(model: ModelT) -> ModelT:
    """Make an exported model compute what the eager model computes after ``.eval()``.

    Args:
        model: an exported module, or one that contains exported modules
            (``DistributedDataParallel`` or a module of your own).

    Returns:
        The same model, switched in place.

    Raises:
        NotExportedError: there is no exported graph in it.
    """
    return _move(model, False)


def move_exported_model_to_train(model: ModelT) -> ModelT:
    """Make an exported model compute what the eager model computes after ``.train()``.

    A value that export dropped cannot come back: an attention exported in evaluation mode has no
    dropout in training either.

    Args:
        model: as in `move_exported_model_to_eval`.

    Returns:
        The same model, switched in place.

    Raises:
        NotExportedError: there is no exported graph in it.
    """
    return _move(model, True)


def _train(self: GraphModule, mode: bool = True) -> GraphModule:
    torch.nn.Module.train(self, mode)
    switch_graph(self, mode)
    return self


def _eval(self: GraphModule) -> GraphModule:
    return _train(self, False)


def allow_exported_model_train_eval(model: ModelT) -> ModelT:
    """Let ``model.train()`` and ``model.eval()`` switch exported graphs, as users expect.

    Args:
        model: as in `move_exported_model_to_eval`.

    Returns:
        The same model.
    """
    for module in model.modules():
        if not isinstance(module, GraphModule) or record_of(module) is not None:
            continue  # one with a record switches by itself
        # Every GraphModule has a class of its own. Functions on the class, unlike bound methods
        # on the instance, do not keep a module alive that nobody else refers to.
        kind: Any = type(module)
        kind.train, kind.eval = _train, _eval
        module.__dict__.pop("train", None)
        module.__dict__.pop("eval", None)
    return model
