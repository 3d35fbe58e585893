"""How a program is called: its tensors, what was constant at export, and how both nest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, TensorArgument

from pt2q.errors import DataError
from pt2q.ir.module import exported_size
from pt2q.ir.torch_private import pytree

Batch = tuple[Tensor, ...]
"""The tensors of one call, in the order of the program's inputs."""


@dataclass(frozen=True)
class Input:
    """One tensor that a program takes; a dynamic dimension is None in `shape`."""

    name: str
    dtype: torch.dtype
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        """As in an error message: name, dtype, shape."""
        sizes = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.name}: {self.dtype} ({sizes})"


@dataclass(frozen=True)
class Signature:
    """What a program takes: tensors, and what was constant at export.

    Attributes:
        inputs: the tensors, in the order of the call.
        batch: the first dimension that all inputs share, or None if they share none.
        constants: (position among all leaves, value) of inputs that are no tensors.
        spec: how the leaves nest into positional and keyword arguments.
    """

    inputs: tuple[Input, ...]
    batch: int | None
    constants: tuple[tuple[int, Any], ...]
    spec: Any

    def leaves(self, batch: Batch) -> tuple[Any, ...]:
        """Tensors with the constants put in between, as a lowered program takes them."""
        flat: list[Any] = list(batch)
        for position, value in self.constants:
            flat.insert(position, value)
        return tuple(flat)

    def call(self, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments for the exported module."""
        args, kwargs = pytree.tree_unflatten(list(self.leaves(batch)), self.spec)
        return tuple(args), dict(kwargs)


def signature_of(program: ExportedProgram) -> Signature:
    """What a program takes.

    Raises:
        DataError: an input is neither a tensor nor a constant.
    """
    values = _placeholders(program)
    specs = [s for s in program.graph_signature.input_specs if s.kind is InputKind.USER_INPUT]
    inputs: list[Input] = []
    constants: list[tuple[int, Any]] = []
    for position, spec in enumerate(specs):
        if isinstance(spec.arg, ConstantArgument):
            constants.append((position, spec.arg.value))
        elif isinstance(spec.arg, TensorArgument):
            inputs.append(_input(spec.arg.name, values[spec.arg.name]))
        else:
            raise DataError(f"input {spec.arg.name} of the model is no tensor: not supported")
    if not inputs:
        raise DataError("the model takes no tensors, so there is nothing to calibrate")
    batch = _common_batch([values[item.name] for item in inputs])
    return Signature(tuple(inputs), batch, tuple(constants), program.call_spec.in_spec)


def dynamic_shapes(
    program: ExportedProgram, signature: Signature, batches: Iterable[Batch] = ()
) -> Any:
    """The dynamic dimensions of a program, in the form in which export takes them.

    Args:
        program: whose they are.
        signature: what it takes.
        batches: their largest sizes bound what has no bound.

    Returns:
        One entry per positional and keyword argument, or None if everything is static.
    """
    if all(None not in item.shape for item in signature.inputs):
        return None
    values = _placeholders(program)
    names = [item.name for item in signature.inputs]
    largest = _largest(batches) if any(unbounded_sizes(program).values()) else ()
    bounds = largest or ((),) * len(names)
    leaves = [
        leaf_shape(values[name], program, sizes) for name, sizes in zip(names, bounds, strict=True)
    ]
    for position, _ in signature.constants:
        leaves.insert(position, None)
    args, kwargs = pytree.tree_unflatten(leaves, signature.spec)
    return (*args, *kwargs.values())


def unbounded_sizes(program: ExportedProgram) -> dict[str, tuple[int, ...]]:
    """The dynamic dimensions of each input that have no upper bound, by the input's name."""
    given = {
        spec.arg.name
        for spec in program.graph_signature.input_specs
        if spec.kind is InputKind.USER_INPUT and isinstance(spec.arg, TensorArgument)
    }
    found = {name: value for name, value in _placeholders(program).items() if name in given}
    return {
        name: tuple(
            dim
            for dim, size in enumerate(value.shape)
            if exported_size(size) is None and _upper(size, program) is None
        )
        for name, value in found.items()
    }


def _upper(size: Any, program: ExportedProgram) -> int | None:
    """The largest number that a symbolic size may be; None if there is none."""
    bounds = program.range_constraints.get(size.node.expr)
    finite = bounds is not None and bounds.is_int and bounds.upper < 2**31
    return int(bounds.upper) if finite else None


def _largest(batches: Iterable[Batch]) -> tuple[tuple[int, ...], ...]:
    """The largest sizes of each input among some batches."""
    found: tuple[tuple[int, ...], ...] = ()
    for batch in batches:
        shapes = tuple(tuple(x.shape) for x in batch)
        found = shapes if not found else tuple(map(_larger, found, shapes))
    return found


def _larger(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(map(max, one, other))


def _placeholders(program: ExportedProgram) -> dict[str, Any]:
    return {n.name: n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder"}


def _input(name: str, value: Tensor) -> Input:
    return Input(name, value.dtype, tuple(map(exported_size, value.shape)))


def _common_batch(values: Sequence[Tensor]) -> int | None:
    firsts = {_example_size(value.shape[0]) if value.dim() else None for value in values}
    return firsts.pop() if len(firsts) == 1 else None


def _example_size(size: Any) -> int:
    """A dimension as it was in the example inputs."""
    return size if isinstance(size, int) else int(size.node.hint)


def leaf_shape(
    value: Tensor, program: ExportedProgram, largest: Sequence[int] = ()
) -> dict[int, Any] | None:
    """The dynamic dimensions of one input, in the form in which export takes them.

    Args:
        value: what its placeholder stands for.
        program: whose it is.
        largest: a bound for each dimension that has none.
    """
    shape: dict[int, Any] = {}
    sizes: tuple[Any, ...] = tuple(value.shape)
    for dim, size in enumerate(sizes):
        if exported_size(size) is not None:
            continue
        upper = _upper(size, program)
        if upper is None and largest:
            upper = largest[dim]
        shape[dim] = Dim.AUTO if upper is None else Dim.AUTO(min=None, max=upper)
    return shape or None
