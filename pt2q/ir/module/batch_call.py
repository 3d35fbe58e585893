"""One batch of data as the call of a model that it stands for: the one reading of batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node

from pt2q.errors import DataError
from pt2q.ir.torch_private import codegen_of, forward_pre_hooks, pytree

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments."""


def as_call(model: GraphModule, batch: Any) -> Call:
    """How a model is called with a batch.

    Args:
        model: an exported or prepared module.
        batch: a tensor (the one argument), a tuple or list (the arguments in their order), or a
            dict by the names of the arguments, or of the graph's inputs.

    Raises:
        DataError: the batch is none of these, or names other arguments.
    """
    names, positional = _names(model)
    if isinstance(batch, Mapping) and set(batch) != set(names):
        if (found := _by_inputs(model, batch)) is not None:
            return found
        batch = (batch,) if len(names) == 1 and _takes_one_dict(model) else batch
    given = _given(batch, names)
    keywords = zip(names[positional:], given[positional:], strict=True)
    return tuple(given[:positional]), dict(keywords)


def _given(batch: Any, names: tuple[str, ...]) -> list[Any]:
    """The arguments in their order."""
    if isinstance(batch, Mapping):
        if set(batch) != set(names):
            found = sorted(map(str, batch))
            raise DataError(f"a batch has {found}, the model takes {list(names)}")
        return [batch[name] for name in names]
    if not isinstance(batch, Tensor | tuple | list):
        raise DataError(
            f"a batch is a tensor, a tuple of arguments or a dict by their names, found "
            f"{type(batch).__name__}"
        )
    given = [batch] if isinstance(batch, Tensor) else list(batch)
    if len(given) != len(names):
        raise DataError(
            f"a batch has {len(given)} argument(s), the model takes {list(names)}. A tuple is the "
            "arguments of one call; several batches come as a list of tuples"
        )
    return given


def _by_inputs(model: GraphModule, batch: Mapping[Any, Any]) -> Call | None:
    """A call of what has the names of the graph's inputs, nested as the model takes it."""
    inputs = [str(node.target) for node in placeholders(model)]
    info = getattr(codegen_of(model.graph), "pytree_info", None)
    if info is None or set(batch) != set(inputs):
        return None
    args, kwargs = pytree.tree_unflatten([batch[name] for name in inputs], info.in_spec)
    return args, kwargs


def _names(model: GraphModule) -> tuple[tuple[str, ...], int]:
    """The names of all arguments, and how many of them are positional."""
    info = getattr(codegen_of(model.graph), "pytree_info", None)
    if info is None:
        names = tuple(str(node.target) for node in placeholders(model))
        return names, len(names)
    positional = info.in_spec.child(0).num_children
    return (*info.orig_args[:positional], *(info.in_spec.child(1).context or ())), positional


def _takes_one_dict(model: GraphModule) -> bool:
    info = getattr(codegen_of(model.graph), "pytree_info", None)
    positional = [] if info is None else info.in_spec.child(0).children()
    return len(positional) == 1 and positional[0].type is dict


def placeholders(model: GraphModule) -> list[Node]:
    """The inputs of a graph, in their order.

    Args:
        model: the module of the graph.
    """
    return [node for node in model.graph.nodes if node.op == "placeholder"]


def placed(model: GraphModule, batch: Any) -> dict[Node, Any]:
    """What each input of a graph is in a batch.

    Args:
        model: the module; its own check of inputs is made.
        batch: see `as_call`.

    Raises:
        DataError: the batch is not one call of the model.
        InputShapeError: a size that was exported as a constant differs.
    """
    args, kwargs = as_call(model, batch)
    for hook in forward_pre_hooks(model).values():
        hook(model, args, kwargs)
    leaves, inputs = pytree.tree_leaves((args, kwargs)), placeholders(model)
    if len(leaves) != len(inputs):
        wanted = ", ".join(node.name for node in inputs)
        raise DataError(
            f"a batch holds {len(leaves)} value(s), the model takes {len(inputs)}: {wanted}"
        )
    return dict(zip(inputs, leaves, strict=True))
