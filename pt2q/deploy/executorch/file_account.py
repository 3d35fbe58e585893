"""What a `.pte` is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pt2q.deploy.executorch.runtime import PROVENANCE
from pt2q.deploy.executorch.xnnpack_blob import nodes_of
from pt2q.deploy.finished_file import FinishedFile, Method, Slot
from pt2q.deploy.provenance import KEY, read_provenance
from pt2q.errors import DataError
from pt2q.library_output import first_line
from pt2q.optional import optional_modules

_READER = "executorch.exir._serialize._program"
"""Private of ExecuTorch, as all of its reading of `.pte` files in Python is."""


def describe(path: Path) -> FinishedFile:
    """Read what a `.pte` is.

    Args:
        path: the file.

    Raises:
        DataError: it is no ExecuTorch program.
        MissingDependencyError: executorch is not installed.
    """
    (reader,) = optional_modules(_READER, extra="executorch")
    data = path.read_bytes()
    try:
        file = reader.deserialize_pte_binary(data)
        program = file.program
    except Exception as error:
        raise DataError(f"{path} is no ExecuTorch program: {first_line(error)}") from error
    plans = [plan for plan in program.execution_plan if plan.name != PROVENANCE]
    said = [plan for plan in program.execution_plan if plan.name == PROVENANCE]
    blobs = [blob.data for blob in program.backend_delegate_data]
    return FinishedFile(
        str(path),
        "ExecuTorch program",
        tuple(_method(plan, blobs) for plan in plans),
        _sizes(file, program, blobs, len(data)),
        read_provenance({KEY: _text(said[0])} if said else {}),
    )


def _text(plan: Any) -> str:
    """What a method that computes nothing gives."""
    return str(plan.values[plan.outputs[0]].val.string_val)


def _method(plan: Any, blobs: Sequence[bytes]) -> Method:
    calls = [i.instr_args for chain in plan.chains for i in chain.instructions or ()]
    kernels = Counter(_operator(plan, c.op_index) for c in calls if hasattr(c, "op_index"))
    inside: Counter[str] = Counter()
    for delegate in plan.delegates:
        if delegate.id == "XnnpackBackend":
            inside += nodes_of(blobs[delegate.processed.index])
    names = dict.fromkeys(delegate.id for delegate in plan.delegates)
    return Method(
        plan.name,
        tuple(_slots(plan, plan.inputs)),
        tuple(_slots(plan, plan.outputs)),
        tuple(kernels.most_common()),
        tuple(inside.most_common()),
        ", ".join(f"{name} ({_calls(plan, calls, name)} calls)" for name in names),
    )


def _calls(plan: Any, calls: Iterable[Any], name: str) -> int:
    places = [c.delegate_index for c in calls if hasattr(c, "delegate_index")]
    return sum(plan.delegates[place].id == name for place in places)


def _operator(plan: Any, index: int) -> str:
    found = plan.operators[index]
    return f"{found.name}.{found.overload}" if found.overload else str(found.name)


def _slots(plan: Any, places: Iterable[int]) -> Iterable[Slot]:
    for number, place in enumerate(places):
        value = plan.values[place].val
        kind = type(value).__name__
        if kind != "Tensor":
            yield Slot(str(number), kind.lower(), None)
            continue
        bound = "up to {}" if value.shape_dynamism.name != "STATIC" else "{}"
        sizes = tuple(bound.format(size) for size in value.sizes)
        yield Slot(str(number), _DTYPES.get(value.scalar_type.name, value.scalar_type.name), sizes)


_DTYPES = {
    "BYTE": "uint8",
    "CHAR": "int8",
    "SHORT": "int16",
    "INT": "int32",
    "LONG": "int64",
    "HALF": "float16",
    "FLOAT": "float32",
    "DOUBLE": "float64",
    "BOOL": "bool",
    "BFLOAT16": "bfloat16",
}


def _sizes(
    file: Any, program: Any, blobs: Sequence[bytes], total: int
) -> tuple[tuple[str, int], ...]:
    named = sum(map(len, file.named_data.buffers)) if file.named_data is not None else 0
    written = sum(map(len, file.mutable_data or ()))
    known = (
        ("weights of delegates", named),
        ("graphs of delegates", sum(map(len, blobs))),
        ("constants", sum(len(buffer.storage) for buffer in program.constant_buffer)),
        ("initial state", written),
    )
    return (*known, ("graph", total - sum(size for _, size in known)))
