"""Say which input has a shape the model was not exported for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph

from pt2q.errors import InputShapeError
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
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int | None, ...] | None, ...]
    keywords: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()

    @classmethod
    def of(cls, graph: Graph) -> InputCheck:
        """Read the expected shapes from the placeholders of an exported graph."""
        inputs = [n for n in graph.nodes if n.op == "placeholder"]
        info = getattr(codegen_of(graph), "pytree_info", None)
        spec = getattr(info, "in_spec", None)
        keywords = tuple(spec.child(1).context or ()) if spec is not None else ()
        names = tuple(str(n.target) for n in inputs)
        return cls(
            names,
            tuple(_static_shape(n.meta.get("val")) for n in inputs),
            keywords,
            names if info is None else tuple(info.orig_args),
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
            fault = _shape_fault(name, shape, leaf)
            if fault is not None and len(shape) == leaf.dim():
                fault += self._way_out(args, kwargs)
            if fault is not None:
                raise InputShapeError(fault)

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


def _static_shape(value: Any) -> tuple[int | None, ...] | None:
    if not isinstance(value, torch.Tensor):
        return None
    return tuple(size if isinstance(size, int) else None for size in value.shape)


def _shape_fault(name: str, shape: tuple[int | None, ...], leaf: torch.Tensor) -> str | None:
    if len(shape) != leaf.dim():
        return (
            f"input {name!r} was exported with {len(shape)} dimensions, found shape "
            f"{tuple(leaf.shape)}"
        )
    for axis, (expected, found) in enumerate(zip(shape, leaf.shape, strict=True)):
        if _differs(expected, found):
            return (
                f"input {name!r} was exported with size {expected} in dimension {axis}, found "
                f"{found} (shape {tuple(leaf.shape)})"
            )
    return None


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
