"""The inputs of a program as text, in the metadata of its package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import TensorArgument
from torch.fx import Node

from pt2q.deploy.inductor.package_inputs import PackageInput, Size, memory_order
from pt2q.errors import DataError
from pt2q.ir.module import exported_size

KEY = "pt2q_inputs"
"""Its name in a package's metadata."""


def described(program: ExportedProgram) -> str:
    """The inputs of a program, as text to keep in its package."""
    signature = program.graph_signature
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    written = set(signature.user_inputs_to_mutate.values())
    inputs = []
    for spec in signature.input_specs:
        if spec.kind.name != "USER_INPUT":
            continue
        if isinstance(spec.arg, TensorArgument):
            inputs.append(_described(nodes[spec.arg.name], program, spec.arg.name in written))
        else:
            value = getattr(spec.arg, "value", None)
            inputs.append(PackageInput(spec.arg.name, value=repr(value)))
    return json.dumps([asdict(item) for item in inputs])


def _described(node: Node, program: ExportedProgram, written: bool) -> PackageInput:
    value: Tensor = node.meta["val"]
    return PackageInput(
        node.name,
        str(value.dtype).removeprefix("torch."),
        tuple(_size(size, program) for size in value.shape),
        memory_order([_hint(stride) for stride in value.stride()]),
        written=written,
    )


def _hint(stride: Any) -> int:
    return stride if isinstance(stride, int) else int(stride.node.hint)


def _size(size: Any, program: ExportedProgram) -> Size:
    if (known := exported_size(size)) is not None:
        return known
    expr = size.node.expr
    if not expr.is_Symbol:
        return None
    bounds = program.range_constraints.get(expr)
    if bounds is None:
        return None
    most = int(bounds.upper) if bounds.upper.is_finite and bounds.upper < 2**31 else None
    return str(expr), int(bounds.lower), most


def read(metadata: Mapping[str, str]) -> tuple[PackageInput, ...] | None:
    """What `described` wrote, from a package's metadata; None if it holds none.

    Raises:
        DataError: it cannot be read.
    """
    text = metadata.get(KEY)
    if text is None:
        return None
    try:
        return tuple(_read(item) for item in json.loads(text))
    except (TypeError, ValueError, KeyError) as error:
        raise DataError(f"the package's account of its inputs is broken: {error}") from error


def _read(item: Mapping[str, Any]) -> PackageInput:
    sizes = tuple(tuple(s) if isinstance(s, list) else s for s in item["sizes"])
    return PackageInput(**{**item, "sizes": sizes, "order": tuple(item["order"])})
