"""Tensors and modules by their qualified names: the one accessor of dotted attributes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node


def is_constant(node: object) -> bool:
    """Whether a node reads a parameter, buffer or lifted constant of the module."""
    return isinstance(node, Node) and node.op == "get_attr"


def split_name(target: str) -> tuple[str, str]:
    """The qualified name of the owner, "" for the root, and the name that it knows a thing by."""
    path, _, name = target.rpartition(".")
    return path, name


def beside(target: str, name: str) -> str:
    """The qualified name of ``name`` in the module that owns ``target``."""
    path, _ = split_name(target)
    return f"{path}.{name}" if path else name


def find_attribute(model: nn.Module, target: str) -> Any:
    """Whatever has a qualified name, or None.

    Args:
        model: where names begin.
        target: such as ``layers.0.weight``; "" is the model.
    """
    found: Any = model
    for part in target.split(".") if target else ():
        found = _held(found, part)
    return found


def _held(owner: Any, name: str) -> Any:
    """``getattr(owner, name, None)``, by the shortest way in a module."""
    if isinstance(owner, nn.Module):
        for place in (owner._modules, owner._parameters, owner._buffers):
            if name in place:
                return place[name]
    return getattr(owner, name, None)


def find_owner(model: nn.Module, target: str) -> tuple[Any, str]:
    """What holds, or would hold, a qualified name (None if that does not exist), and its own name.

    Args:
        model: where names begin.
        target: the qualified name.
    """
    path, name = split_name(target)
    return find_attribute(model, path), name


def get_constant(model: nn.Module, node: Node | str) -> Tensor:
    """The tensor a ``get_attr`` node reads.

    Args:
        model: the module that owns the graph.
        node: the node, or its target.

    Raises:
        AttributeError: nothing is there.
        TypeError: what is there is not a tensor.
    """
    target = node if isinstance(node, str) else str(node.target)
    found = find_attribute(model, target)
    if found is None:
        owner, name = find_owner(model, target)
        found = getattr(owner, name)
    if not isinstance(found, Tensor):
        raise TypeError(f"{target} is a {type(found).__name__}, not a tensor")
    return found


def holds_tensor(model: nn.Module, node: Node | str) -> bool:
    """Whether `get_constant` finds a tensor: control flow reads modules by ``get_attr``, too."""
    target = node if isinstance(node, str) else str(node.target)
    return isinstance(find_attribute(model, target), Tensor)


def set_constant(
    model: GraphModule, target: str, value: Tensor, *, persistent: bool = True
) -> None:
    """Store a tensor under a qualified name, as a Parameter if it is one, else as a buffer.

    Args:
        model: the module that owns the graph.
        target: the qualified name; missing submodules are made.
        value: what to store; replaces what is there.
        persistent: whether a buffer belongs to the state dict.
    """
    path, name = split_name(target)
    owner: nn.Module = model
    for part in path.split(".") if path else ():
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        owner = getattr(owner, part)
    owner._parameters.pop(name, None)
    owner._buffers.pop(name, None)
    owner.__dict__.pop(name, None)
    if isinstance(value, nn.Parameter):
        owner.register_parameter(name, value)
    else:
        owner.register_buffer(name, value, persistent=persistent)


def replace_tensor(model: nn.Module, target: str, value: Tensor) -> None:
    """Put a tensor where one is: a parameter stays one, a buffer keeps its persistence.

    Args:
        model: where names begin.
        target: the qualified name; nothing happens if no tensor is there.
        value: the new tensor.
    """
    owner, name = find_owner(model, target)
    for place in () if owner is None else (owner._parameters, owner._buffers):
        if name in place:
            place[name] = value


def delete_constant(model: nn.Module, target: str) -> None:
    """Remove a tensor from the module; nothing happens if it is not there.

    Args:
        model: the module that owns the graph; no node of it may read the tensor.
        target: the qualified name.
    """
    owner, name = find_owner(model, target)
    if owner is not None and hasattr(owner, name):
        delattr(owner, name)


def is_parameter(model: nn.Module, target: str) -> bool:
    """Whether the qualified name is a Parameter of the module."""
    owner, name = find_owner(model, target)
    return owner is not None and name in owner._parameters


def is_persistent(model: nn.Module, target: str) -> bool:
    """Whether what has the qualified name belongs to the state dict.

    Args:
        model: the module that owns the graph.
        target: a qualified name; what does not exist counts as persistent.
    """
    owner, name = find_owner(model, target)
    return name not in getattr(owner, "_non_persistent_buffers_set", ())


def named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """All parameters and buffers by qualified name, a tensor with several names as often."""
    found: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    found.update(model.named_buffers(remove_duplicate=False))
    return found
