"""Operators, fake values and specs of arguments as plain data, and back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pt2q.errors import DataError
from pt2q.ir import ops
from pt2q.ir.torch_private import (
    FakeTensor,
    FakeTensorMode,
    OpOverload,
    PyTreeCodeGen,
    overload_name,
    pytree,
    schema_of,
)


@dataclass(frozen=True)
class _Op:
    name: str
    overload: str


@dataclass(frozen=True)
class _Value:
    """A fake tensor on disk. Symbolic sizes are stored as their example value."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: str


@dataclass(frozen=True)
class _Spec:
    """A ``TreeSpec``; without a type, a leaf."""

    type: Any
    context: Any
    children: tuple[_Spec, ...]


def freeze_target(target: Any) -> Any:
    """What a node calls: an operator by its names, anything else as it is."""
    if isinstance(target, OpOverload):
        return _Op(schema_of(target).name, overload_name(target))
    return target


def thaw_target(target: Any) -> Any:
    """What `freeze_target` was given.

    Raises:
        DataError: it is an operator that is not registered here.
    """
    if not isinstance(target, _Op):
        return target
    found = ops.operator_named(f"{target.name}.{target.overload}")
    if found is None:
        raise DataError(
            f"the model calls the operator {target.name}.{target.overload}, which is not "
            "registered; import the library that defines it, then load the model"
        )
    return found


def freeze_value(value: Any) -> Any:
    """A node's fake value: sizes, strides, dtype and device of each tensor in it."""
    if isinstance(value, torch.Tensor):
        sizes = tuple(int(_hint(s)) for s in value.shape)
        strides = tuple(int(_hint(s)) for s in value.stride())
        return _Value(sizes, strides, value.dtype, str(value.device))
    if isinstance(value, list | tuple):
        return type(value)(freeze_value(v) for v in value)
    return value if isinstance(value, bool | int | float | str | None.__class__) else None


def _hint(size: Any) -> int:
    if isinstance(size, int):
        return size
    hint = size.node.hint
    return 2 if hint is None else int(hint)


def thaw_value(value: Any, mode: FakeTensorMode) -> Any:
    """What `freeze_value` was given, with numbers for symbolic sizes, in a fake mode."""
    if isinstance(value, _Value):
        element = torch.empty_strided(value.shape, value.stride, dtype=value.dtype, device="meta")
        return FakeTensor(mode, element, torch.device(value.device))
    if isinstance(value, list | tuple):
        return type(value)(thaw_value(v, mode) for v in value)
    return value


def freeze_spec(value: Any) -> Any:
    """Specs of arguments by what they hold: torch warns when one of a leaf is loaded."""
    if not isinstance(value, pytree.TreeSpec):
        return value
    return _Spec(value.type, value.context, tuple(map(freeze_spec, value.children())))


def thaw_spec(value: Any) -> Any:
    """What `freeze_spec` was given."""
    if not isinstance(value, _Spec):
        return value
    if value.type is None:
        return pytree.treespec_leaf()
    return pytree.TreeSpec(value.type, value.context, list(map(thaw_spec, value.children)))


def map_specs(codegen: Any, change: Callable[[Any], Any]) -> Any:
    """A copy of what writes the code of a graph with its specs frozen or thawed."""
    result = copy.copy(codegen)
    if isinstance(result, PyTreeCodeGen):
        result.pytree_info = result.pytree_info._replace(
            **{k: change(v) for k, v in result.pytree_info._asdict().items()}
        )
    return result
