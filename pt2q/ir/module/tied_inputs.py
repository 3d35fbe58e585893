"""Inputs that export took for one, because it was given one tensor for all of them."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from pt2q.errors import TiedInputsWarning
from pt2q.ir.torch_private import pytree


def warn_of_tied_inputs(program: ExportedProgram) -> None:
    """Say which inputs a program does not read because another one was the same tensor at export.

    Args:
        program: with its example inputs; without them nothing can be said.
    """
    specs = [s for s in program.graph_signature.input_specs if s.kind is InputKind.USER_INPUT]
    examples = pytree.tree_leaves(program.example_inputs)
    if program.example_inputs is None or len(examples) != len(specs):
        return
    readers = {n.name: len(n.users) for n in program.graph.nodes if n.op == "placeholder"}
    named = [(str(spec.arg.name), x) for spec, x in zip(specs, examples, strict=True)]
    for name, x in named:
        twins = [other for other, y in named if other != name and _same(x, y) and readers[other]]
        if twins and not readers[name]:
            warnings.warn(
                f"the program does not read input {name!r}: it was exported with the same tensor "
                f"for {name!r} and {twins[0]!r}, and reads {twins[0]!r} for both. Export it with a "
                "tensor of its own for each input",
                TiedInputsWarning,
                stacklevel=4,
            )


def _same(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.numel() == 0:
        return False
    layout = a.shape == b.shape and a.stride() == b.stride() and a.dtype == b.dtype
    return a is b or (layout and a.data_ptr() == b.data_ptr())
