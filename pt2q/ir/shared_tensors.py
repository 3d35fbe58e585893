"""Tensors that several programs of one model have in common: weights, and what it remembers.

Programs exported from one model (prefill and decode) call its tensors by the same names. What has
one name is one value for all of them: what one writes the others read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from pt2q.errors import SharedTensorError
from pt2q.ir.graph import is_constant, is_float_tensor, named_tensors, replace_tensor
from pt2q.ir.storage import StorageMap, place_of, storage_of, written_constants

_LIFTED = re.compile(r"(_?lifted_tensor|_tensor_constant|_?constant)_?\d+")
"""What export calls the constants that a program has to itself."""

Programs = Mapping[str, GraphModule]


def unite_tensors(
    programs: Programs, *, made: bool = False, made_from: Programs | None = None
) -> None:
    """Let programs hold one tensor wherever they hold tensors of one name.

    Args:
        programs: by name; tensors are put in place, nothing else is changed.
        made: some were made since, in each program by itself, and may differ: those are left.
        made_from: what the programs were made from: what was one tensor there is one here.

    Raises:
        SharedTensorError: tensors of one name differ.
    """
    first: dict[Any, tuple[str, Tensor]] = {}
    for program, model in programs.items():
        moved: dict[int, Tensor] = {}
        before = {} if made_from is None else named_tensors(made_from[program])
        for name, tensor in named_tensors(model).items():
            key = place_of(before[name]) if name in before else name
            if key == name and _LIFTED.fullmatch(name.rpartition(".")[2]):
                continue
            owner, one = first.setdefault(key, (program, tensor))
            if place_of(one) == place_of(tensor):
                continue
            if _equal(one, tensor):
                moved[storage_of(tensor)] = one
                replace_tensor(model, name, one)
            elif not made:
                raise _differ(name, owner, one, program, tensor)
        _move_views(model, moved)


def _move_views(model: GraphModule, moved: Mapping[int, Tensor]) -> None:
    """Let other names of moved tensors, such as export gives caches, be views of the new ones."""
    for name, tensor in named_tensors(model).items():
        new = moved.get(storage_of(tensor))
        if new is not None and new.dtype == tensor.dtype:
            window = tensor.size(), tensor.stride(), tensor.storage_offset()
            replace_tensor(model, name, new.detach().as_strided(*window))


def check_state(programs: Programs) -> None:
    """Check that what one program writes, all that read it write too.

    A runtime keeps state for the programs that write it; to others it is a constant.

    Args:
        programs: by name.

    Raises:
        SharedTensorError: a program only reads what another writes.
    """
    written = {p: written_constants(model.graph) for p, model in programs.items()}
    for program, model in programs.items():
        read = {str(node.target) for node in model.graph.nodes if is_constant(node)}
        for other, targets in written.items():
            lost = sorted((targets & read) - written[program])
            if lost:
                raise SharedTensorError(
                    f"{other!r} writes {lost[0]!r}, and {program!r} only reads it: to a runtime "
                    f"it is a constant there. Let {program!r} write it too, or hand it over as an "
                    "input"
                )


def one_value(programs: Programs) -> list[tuple[Node, Node]]:
    """Pairs of nodes of different programs that are one tensor, or a part or later state of it.

    Args:
        programs: by name.
    """
    first: dict[str, Node] = {}
    links: list[tuple[Node, Node]] = []
    for model in programs.values():
        for name, node in _named_nodes(model):
            one = first.setdefault(name, node)
            if one is not node:
                links.append((one, node))
    return links


def _named_nodes(model: GraphModule) -> Iterator[tuple[str, Node]]:
    """The reads of constants; of written ones, what writing leaves too."""
    storage = StorageMap.of(model.graph)
    for node in model.graph.nodes:
        root = storage.root[node]
        if not is_constant(root) or not is_float_tensor(node):
            continue
        if node is root or storage.is_mutated(root):
            yield str(root.target), node


def _equal(one: Tensor, other: Tensor) -> bool:
    alike = one.dtype == other.dtype and one.shape == other.shape and one.device == other.device
    return alike and torch.equal(one.detach(), other.detach())


def _differ(name: str, owner: str, one: Tensor, program: str, other: Tensor) -> SharedTensorError:
    kinds = [f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}" for t in (one, other)]
    if kinds[0] == kinds[1]:
        kinds = [kinds[0], "other numbers"]
    return SharedTensorError(
        f"{name!r} is not the same tensor in {owner!r} ({kinds[0]}) and {program!r} ({kinds[1]}). "
        "Export all programs from one model; give modules that are not the same other names, such "
        "as by putting both into one nn.ModuleDict"
    )
