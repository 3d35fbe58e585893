"""Say which input has a shape the model was not exported for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph

from pt2q.errors import InputShapeError
from pt2q.ir.module.size_relations import broken, exported_size, readable, relations_among
from pt2q.ir.torch_private import codegen_of, pytree


@dataclass
class InputCheck:
    """A forward pre-hook that says which input has a shape the model was not exported for.

    Args:
        names: the inputs, flat, in order.
        shapes: per input, the exported sizes, None where a size is dynamic; None for inputs
            that are not tensors.
        keywords: names of keyword inputs in the order they were exported.
        arguments: names of the positional arguments, each of which may hold several inputs.
        specialised: (input, dimension) of sizes that were asked to be dynamic, and with which
            export found the model to compute at one size alone.
        paths: per input, how it is found in the arguments, such as ``d['k'][0]``.
        relations: what has to hold of the sizes, as text; see `pt2q.ir.module.size_relations`.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int | None, ...] | None, ...]
    keywords: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    specialised: frozenset[tuple[str, int]] = frozenset()
    paths: tuple[str, ...] = ()
    relations: tuple[str, ...] = ()

    @classmethod
    def of(cls, graph: Graph, guards: Iterable[str] = ()) -> InputCheck:
        """Read the expected shapes from the placeholders of an exported graph.

        Args:
            graph: of an exported module.
            guards: what export found out of the sizes besides, as text.
        """
        inputs = [n for n in graph.nodes if n.op == "placeholder"]
        info = getattr(codegen_of(graph), "pytree_info", None)
        spec = getattr(info, "in_spec", None)
        keywords = tuple(spec.child(1).context or ()) if spec is not None else ()
        names = tuple(str(n.target) for n in inputs)
        arguments = names if info is None else tuple(info.orig_args)
        paths = names if spec is None else _paths(spec, arguments)
        placed = dict(zip(paths, inputs, strict=len(paths) == len(inputs)))
        return cls(
            names,
            tuple(_static_shape(n.meta.get("val")) for n in inputs),
            keywords,
            arguments,
            frozenset((str(n.target), d) for n in inputs for d in _specialised(n.meta.get("val"))),
            paths,
            readable((*relations_among(placed), *guards)),
        )

    def install(self, model: torch.nn.Module) -> None:
        """Register on a module, once."""
        model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Compare the inputs of a call with what was exported.

        Raises:
            InputShapeError: a size that was exported as a constant differs.
        """
        if kwargs and set(kwargs) == set(self.keywords):
            kwargs = {key: kwargs[key] for key in self.keywords}
        leaves = pytree.tree_leaves((args, kwargs))
        if len(leaves) != len(self.names):
            return  # the module's own calling convention reports it
        for name, shape, leaf in zip(self.names, self.shapes, leaves, strict=True):
            if shape is None or not isinstance(leaf, torch.Tensor):
                continue
            fault, axis = _shape_fault(name, shape, leaf)
            if (name, axis) in self.specialised:
                fault += _ONE_SIZE
            elif fault and axis is not None:
                fault += self._way_out(args, kwargs)
            if fault:
                raise InputShapeError(fault)
        self._check_relations(leaves)

    def _check_relations(self, leaves: list[Any]) -> None:
        """Sizes that fit one by one and not together."""
        if not self.relations or torch.compiler.is_compiling():
            return  # sizes that are being exported anew: asking would pin them
        sizes = {
            path: tuple(leaf.shape)
            for path, leaf in zip(self.paths, leaves, strict=False)
            if isinstance(leaf, torch.Tensor)
        }
        if any(type(n) is not int for shape in sizes.values() for n in shape):
            return
        found = broken(self.relations, sizes)
        if found is not None:
            shapes = ", ".join(f"{path} {shape}" for path, shape in sizes.items())
            raise InputShapeError(
                f"export found that {found} has to hold, or the program computes something else "
                f"than the model; found {shapes}. Call it with sizes for which it holds, or change "
                "the model so that it does not depend on it"
            )

    def _way_out(self, args: Any, kwargs: dict[str, Any]) -> str:
        """The ``dynamic_shapes`` with which this call would have been right.

        torch wants all arguments in it, each with the structure of what is given for it.
        """
        leaves, spec = pytree.tree_flatten((args, kwargs))
        axes = [_free_axes(shape, at) for shape, at in zip(self.shapes, leaves, strict=True)]
        of_args, of_kwargs = pytree.tree_unflatten(axes, spec)
        wanted = {**dict(zip(self.arguments, of_args, strict=False)), **of_kwargs}
        return (
            ". Export it with that dimension dynamic:\n"
            f"    torch.export.export(model, args, dynamic_shapes={wanted!r})\n"
            "with example inputs whose size there is 2 or more, or call it with the exported size"
        )


_ONE_SIZE = (
    ". That dimension was asked to be dynamic, and export found that the model computes at this "
    "size alone: a stored tensor or a number in its code holds it to that. Change the model, or "
    "call it with that size"
)


def _paths(spec: Any, arguments: tuple[str, ...]) -> tuple[str, ...]:
    """How each flat input is found in the arguments, as export writes it."""
    nested = pytree.tree_unflatten([0] * spec.num_leaves, spec)
    paths = (path for path, _ in pytree.tree_flatten_with_path(nested)[0])
    return tuple(_path(path, arguments) for path in paths)


def _path(path: Any, arguments: tuple[str, ...]) -> str:
    half, first, *rest = path
    name = arguments[first.idx] if half.idx == 0 and first.idx < len(arguments) else None
    return f"{name or getattr(first, 'key', first)}{pytree.keystr(tuple(rest))}"


def _static_shape(value: Any) -> tuple[int | None, ...] | None:
    if not isinstance(value, torch.Tensor):
        return None
    return tuple(map(exported_size, value.shape))


def _specialised(value: Any) -> list[int]:
    shape = value.shape if isinstance(value, torch.Tensor) else ()
    sizes = enumerate(shape)
    return [d for d, n in sizes if not isinstance(n, int) and exported_size(n) is not None]


def _shape_fault(
    name: str, shape: tuple[int | None, ...], leaf: torch.Tensor
) -> tuple[str, int | None]:
    """What is wrong, "" if nothing is, and in which dimension."""
    if len(shape) != leaf.dim():
        return (
            f"input {name!r} was exported with {len(shape)} dimensions, found shape "
            f"{tuple(leaf.shape)}"
        ), None
    for axis, (expected, found) in enumerate(zip(shape, leaf.shape, strict=True)):
        if _differs(expected, found):
            return (
                f"input {name!r} was exported with size {expected} in dimension {axis}, found "
                f"{found} (shape {tuple(leaf.shape)})"
            ), axis
    return "", None


def _differs(expected: int | None, found: Any) -> bool:
    # A symbolic size is being exported anew: comparing it would pin it to a constant.
    return expected is not None and isinstance(found, int) and expected != found


@dataclass(frozen=True)
class _Axes:
    """Dimensions of an input, printed as `torch.export` takes them."""

    free: tuple[int, ...]

    def __repr__(self) -> str:
        if not self.free:
            return "None"
        return f"{{{', '.join(f'{axis}: torch.export.Dim.AUTO' for axis in self.free)}}}"


def _free_axes(shape: tuple[int | None, ...] | None, leaf: Any) -> _Axes:
    """Those that were dynamic, and those whose size differs."""
    if shape is None or not isinstance(leaf, torch.Tensor) or len(shape) != leaf.dim():
        return _Axes(())
    sizes = enumerate(zip(shape, leaf.shape, strict=True))
    return _Axes(tuple(i for i, (size, at) in sizes if size is None or _differs(size, at)))
