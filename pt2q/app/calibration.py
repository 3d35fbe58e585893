"""A saved model and calibration data from files, checked against each other.

What the files may hold:

- `.npz`: arrays named like the model's inputs, or (with any other names) in the order of the
  inputs. `numpy.savez(path, images)` and `numpy.savez(path, x=images)` are both fine.
- `.pt`: a tensor, a tuple of tensors in the order of the inputs, a dict by input name, or a list
  of such things. Read with `weights_only=True`.
- a folder: all its `.npz` and `.pt` files, sorted by name.

The first axis of every array is split into batches of the size that the model was exported with;
a rest that does not fill a batch is left out. When the inputs have no first axis in common, each
set of arrays has to be exactly one call of the model.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, TensorArgument
from torch.utils import _pytree as pytree

from pt2q.deploy.library_output import first_line, quiet_python
from pt2q.errors import DataError

Batch = tuple[Tensor, ...]


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


def read_program(path: str | PathLike[str]) -> ExportedProgram:
    """Load what `torch.export.save` wrote.

    Raises:
        DataError: the file is missing, truncated or something else.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"model {path}: no such file")
    if not zipfile.is_zipfile(path):
        raise DataError(
            f"model {path}: truncated, or not written by torch.export.save "
            f"({path.stat().st_size} bytes)"
        )
    try:
        with quiet_python():
            return torch.export.load(path)
    except Exception as error:
        raise DataError(f"model {path}: torch.export.load failed: {first_line(error)}") from error


def signature_of(program: ExportedProgram) -> Signature:
    """What a program takes.

    Raises:
        DataError: an input is neither a tensor nor a constant.
    """
    values = {n.name: n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder"}
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


def read_batches(path: str | PathLike[str], signature: Signature) -> tuple[Batch, ...]:
    """Read calibration data and cut it into calls of the program.

    Raises:
        DataError: a file is missing, unreadable, empty, or does not fit the inputs.
    """
    batches: list[Batch] = []
    for file in _files(Path(path)):
        for item in _items(file):
            batches += _split(file, _ordered(file, item, signature), signature)
    if not batches:
        raise DataError(
            f"calibration data {path}: empty, not one batch of {signature.batch or 1} in it"
        )
    return tuple(batches)


# -------------------------------------------------------------------------------------- the model


def _input(name: str, value: Tensor) -> Input:
    sizes = tuple(size if isinstance(size, int) else None for size in value.shape)
    return Input(name, value.dtype, sizes)


def _common_batch(values: Sequence[Tensor]) -> int | None:
    firsts = {_example_size(value.shape[0]) if value.dim() else None for value in values}
    return firsts.pop() if len(firsts) == 1 else None


def _example_size(size: Any) -> int:
    """A dimension as it was in the example inputs."""
    return size if isinstance(size, int) else int(size.node.hint)


# --------------------------------------------------------------------------------------- the data


def _files(path: Path) -> tuple[Path, ...]:
    if not path.exists():
        raise DataError(f"calibration data {path}: no such file or folder")
    if not path.is_dir():
        return (path,)
    files = tuple(sorted(p for p in path.iterdir() if p.suffix in (".npz", ".pt")))
    if not files:
        raise DataError(f"calibration data {path}: the folder holds no .npz and no .pt file")
    return files


def _items(file: Path) -> Iterator[Any]:
    if file.suffix == ".npz":
        yield _read_npz(file)
    elif file.suffix == ".pt":
        content = _read_pt(file)
        yield from content if isinstance(content, list) else [content]
    else:
        raise DataError(f"calibration data {file}: expected .npz or .pt, got {file.suffix!r}")


def _read_npz(file: Path) -> dict[str, Tensor]:
    try:
        # Opened here, because numpy leaves a file open that it cannot read.
        with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except Exception as error:
        raise DataError(f"calibration data {file}: not readable: {first_line(error)}") from error


def _read_pt(file: Path) -> Any:
    try:
        return torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:
        raise DataError(f"calibration data {file}: not readable: {first_line(error)}") from error


def _ordered(file: Path, item: Any, signature: Signature) -> Batch:
    """The tensors of one item in the order of the program's inputs."""
    names = [wanted.name for wanted in signature.inputs]
    if isinstance(item, Mapping):
        by_name = file.suffix == ".pt" or set(item) == set(names)
        if by_name and set(item) != set(names):
            raise DataError(
                f"calibration data {file}: the model's inputs are {names}, got {sorted(item)}"
            )
        item = tuple(item[name] for name in names) if by_name else tuple(item.values())
    if isinstance(item, Tensor):
        item = (item,)
    if not isinstance(item, tuple) or not all(isinstance(x, Tensor) for x in item):
        raise DataError(f"calibration data {file}: expected tensors, got {type(item).__name__}")
    if len(item) != len(names):
        raise DataError(
            f"calibration data {file}: the model takes {len(names)} input(s) {names}, "
            f"got {len(item)}"
        )
    for wanted, tensor in zip(signature.inputs, item, strict=True):
        _check(file, wanted, tensor, signature.batch)
    return item


def _check(file: Path, wanted: Input, tensor: Tensor, batch: int | None) -> None:
    free = batch is not None  # the first axis may be of any length: it is split
    shape = (None, *wanted.shape[1:]) if free else wanted.shape
    fits = tensor.dim() == len(shape) and all(
        size is None or size == actual for size, actual in zip(shape, tensor.shape, strict=True)
    )
    if tensor.dtype != wanted.dtype or not fits:
        expected = Input(wanted.name, wanted.dtype, shape)
        raise DataError(
            f"calibration data {file}: expected {expected}, "
            f"got {tensor.dtype} {tuple(tensor.shape)}"
        )
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise DataError(f"calibration data {file}: NaN or infinity in input {wanted.name}")


def _split(file: Path, item: Batch, signature: Signature) -> list[Batch]:
    if signature.batch is None:
        return [item]
    lengths = {len(tensor) for tensor in item}
    if len(lengths) != 1:
        raise DataError(
            f"calibration data {file}: the inputs have first axes of different lengths "
            f"{sorted(lengths)}"
        )
    whole = lengths.pop() // signature.batch * signature.batch
    chunks = (tensor[:whole].split(signature.batch) for tensor in item)
    return list(zip(*chunks, strict=True)) if whole else []
