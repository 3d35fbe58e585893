"""`QuantGraphModule`: the graph module that prepare and convert return.

A `torch.fx.GraphModule` whose ``train`` and ``eval`` switch the operators that behave
differently, that remembers where in the flow it stands, that checks the shapes it is called
with, and that can be deep-copied and pickled without losing node metadata.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Node
from torch.fx.graph import _PyTreeCodeGen
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from pt2q.errors import FlowError, InputShapeError, NotExportedError
from pt2q.ir.emit import copied, restored
from pt2q.ir.graph import COPIED_META
from pt2q.ir.shared_views import View, restore_views, views_among
from pt2q.spec.specs import QUANT_ANNOTATION_KEY, QuantizationAnnotation


class Stage(Enum):
    """Where in the flow a module stands."""

    FLOAT = "float"
    PREPARED = "prepared"
    PREPARED_QAT = "prepared for QAT"
    CONVERTED = "converted"


@dataclass(frozen=True)
class Note:
    """One thing a pass wants known: what, at which node, and why.

    Args:
        origin: the pass.
        node: the node's name.
        text: the reason.
    """

    origin: str
    node: str
    text: str

    def __str__(self) -> str:
        return f"[{self.origin}] {self.node}: {self.text}"


@dataclass
class FlowRecord:
    """What happened to a module so far; travels with copies and pickles.

    Args:
        stage: where in the flow the module stands.
        notes: what passes decided, or declined, by node.
        facts: typed records that one pass leaves for a later one, by the pass's name.
    """

    stage: Stage = Stage.FLOAT
    notes: list[Note] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def note(self, origin: str, node: str, text: str) -> None:
        """Add a note."""
        self.notes.append(Note(origin, node, text))


def note(model: GraphModule, origin: str, node: Node, reason: str) -> None:
    """Put on record why a node stays as it is; a plain module keeps no record."""
    if isinstance(model, QuantGraphModule):
        model.record.note(origin, node.name, reason)


_deferred: ContextVar[bool] = ContextVar("deferred", default=False)


@contextmanager
def deferred_code() -> Iterator[None]:
    """Within it, modules do not generate code; who calls one gets it generated then.

    Generating and compiling the code of a graph costs more than any pass over it, so the flow
    does it once, at its end.
    """
    token = _deferred.set(True)
    try:
        yield
    finally:
        _deferred.reset(token)


def _generate_and_forward(self: QuantGraphModule, *args: Any, **kwargs: Any) -> Any:
    GraphModule.recompile(self)
    return self.forward(*args, **kwargs)


class QuantGraphModule(GraphModule):
    """A graph module on its way from float to quantized.

    Args:
        root: where parameters, buffers and submodules are taken from (not copied).
        graph: what it computes.
        record: its history.
    """

    record: FlowRecord

    def __init__(
        self,
        root: torch.nn.Module,
        graph: Graph,
        class_name: str = "QuantGraphModule",
        record: FlowRecord | None = None,
    ) -> None:
        super().__init__(root, graph, class_name)
        self.record = FlowRecord() if record is None else record
        _keep_persistence(root, self)

    def train(self, mode: bool = True) -> QuantGraphModule:
        """Switch batch norms, dropouts and all that behaves differently in training.

        Args:
            mode: True for training, False for evaluation.

        Returns:
            This module.
        """
        from pt2q.ir.modes import switch_mode  # passes import this module

        super().train(mode)
        switch_mode(self, mode)
        return self

    def recompile(self) -> Any:
        """Bring the code up to date with the graph; under `deferred_code`, at the next call."""
        if not _deferred.get():
            return super().recompile()
        type(self).forward = _generate_and_forward
        return None

    def __deepcopy__(self, memo: dict[int, Any]) -> QuantGraphModule:
        graph_memo: dict[Any, Any] = {}
        graph = _copy_graph(self.graph, graph_memo)
        root = torch.nn.Module()
        # Specs of arguments never change, and torch warns when it makes one of a leaf anew.
        memo.update({id(v): v for v in self.__dict__.values() if isinstance(v, pytree.TreeSpec)})
        root.__dict__ = {
            key: copy.deepcopy(value, memo)
            for key, value in self.__dict__.items()
            if key not in ("_graph", "record")
        }
        result = QuantGraphModule(root, graph, record=copy.deepcopy(self.record, memo))
        result.meta = root.__dict__.get("meta", {})
        _copy_hooks(root, result)
        memo[id(self)] = result
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        kept = {k: v for k, v in self.__dict__.items() if k not in ("_graph", "_code", "meta")}
        state = {k: _freeze_spec(v) for k, v in kept.items()}
        return _rebuild, (state, _freeze_graph(self.graph), views_among(_held_tensors(self)))


def _copy_hooks(source: torch.nn.Module, target: torch.nn.Module) -> None:
    for key, value in source.__dict__.items():
        if "hooks" in key and isinstance(value, dict) and key in target.__dict__ and value:
            target.__dict__[key] = value


def _keep_persistence(root: torch.nn.Module, new: torch.nn.Module) -> None:
    """Buffers kept out of the state dict stay out: GraphModule's copy forgets the flag."""
    sources = dict(root.named_modules(remove_duplicate=False))
    for path, module in new.named_modules(remove_duplicate=False):
        source = sources.get(path)
        if source is None or source is module or not source._non_persistent_buffers_set:
            continue
        module._non_persistent_buffers_set |= source._non_persistent_buffers_set & set(
            module._buffers
        )


# ------------------------------------------------------------------ copying


def _copy_graph(graph: Graph, memo: dict[Any, Any]) -> Graph:
    """A copy whose annotations point at the copied nodes."""
    result = Graph(tracer_cls=graph._tracer_cls)
    result._codegen = copy.copy(graph._codegen)
    for node in graph.nodes:
        new = copied(node, result, memo.__getitem__)
        memo[node] = new
        annotation = new.meta.get(QUANT_ANNOTATION_KEY)
        if annotation is not None:
            new.meta[QUANT_ANNOTATION_KEY] = _move_annotation(annotation, memo)
    return result


def _move_annotation(
    annotation: QuantizationAnnotation, memo: dict[Any, Any]
) -> QuantizationAnnotation:
    # Specs may still refer to nodes of the old graph; after planning nobody reads them again.
    inputs = {memo.get(node, node): spec for node, spec in annotation.input_qspec_map.items()}
    return QuantizationAnnotation(
        inputs,
        annotation.output_qspec,
        annotation.allow_implicit_sharing,
        annotation._annotated,
    )


def copy_module(model: GraphModule, record: FlowRecord | None = None) -> QuantGraphModule:
    """A module with its own graph and module tree that shares the tensors of ``model``.

    Args:
        model: an exported, prepared or converted module.
        record: the history of the copy; None starts with an empty one.
    """
    result = QuantGraphModule(model, _copy_graph(model.graph, {}), record=record)
    for hook in model._forward_pre_hooks.values():
        if isinstance(hook, InputCheck):
            hook.install(result)
    for name, body in _bodies(result).items():
        inner = copy.copy(body.record) if isinstance(body, QuantGraphModule) else None
        result.add_module(name, copy_module(body, inner))
    return result


def _bodies(model: GraphModule) -> dict[str, GraphModule]:
    """The graph modules that control-flow operators of the graph run, by name."""
    found = {}
    for node in model.graph.nodes:
        if node.op == "get_attr" and "." not in str(node.target):
            body = model._modules.get(str(node.target))
            if isinstance(body, GraphModule):
                found[str(node.target)] = body
    return found


EXPORT_HINT = (
    "capture it first:\n"
    "    exported = torch.export.export(model.eval(), example_inputs)\n"
    "    prepared = prepare_pt2e(exported.module(), quantizer)"
)


def import_exported(model: ExportedProgram | GraphModule) -> QuantGraphModule:
    """Take an exported model as given by the user and make the copy that passes work on.

    Args:
        model: an ``ExportedProgram`` or its ``.module()``.

    Returns:
        A copy that shares the model's tensors; the model itself is never changed.

    Raises:
        NotExportedError: the module was not captured with ``torch.export``.
        FlowError: the module was prepared or converted already.
    """
    if isinstance(model, ExportedProgram):
        model = model.module(check_guards=False)
    if isinstance(model, QuantGraphModule) and model.record.stage is not Stage.FLOAT:
        raise FlowError(
            f"this model is already {model.record.stage.value}; "
            "prepare the module that torch.export returned, once"
        )
    _check_exported(model)
    result = copy_module(model)
    _drop_guards(result)
    InputCheck.of(result.graph).install(result)
    return result


def _check_exported(model: object) -> None:
    if not isinstance(model, GraphModule):
        kind = type(model).__name__
        raise NotExportedError(f"{kind} was never captured with torch.export; {EXPORT_HINT}")
    for node in model.graph.nodes:
        if node.op == "call_method" or (node.op == "call_module" and not _is_guard(model, node)):
            raise NotExportedError(
                f"the graph calls {node.target!r} at node {node.name}, so it was traced by "
                f"torch.fx and not captured with torch.export; {EXPORT_HINT}"
            )


def _is_guard(model: GraphModule, node: Node) -> bool:
    return node.op == "call_module" and str(node.target) == "_guards_fn"


def _drop_guards(model: QuantGraphModule) -> None:
    """Replace export's guard call, which cannot be pickled, by `InputCheck`."""
    for node in list(model.graph.nodes):
        if _is_guard(model, node):
            model.graph.erase_node(node)
            delattr(model, "_guards_fn")
            model.recompile()


# ------------------------------------------------------------------ input shapes


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
        info = getattr(graph._codegen, "pytree_info", None)
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


# ------------------------------------------------------------------ pickling


@dataclass(frozen=True)
class _Ref:
    name: str


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


def _freeze_target(target: Any) -> Any:
    if isinstance(target, torch._ops.OpOverload):
        return _Op(target._schema.name, target._overloadname)
    return target


def _thaw_target(target: Any) -> Any:
    if not isinstance(target, _Op):
        return target
    namespace, name = target.name.split("::")
    return getattr(getattr(getattr(torch.ops, namespace), name), target.overload)  # noqa: TID251


def _freeze_value(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        sizes = tuple(int(_hint(s)) for s in value.shape)
        strides = tuple(int(_hint(s)) for s in value.stride())
        return _Value(sizes, strides, value.dtype, str(value.device))
    if isinstance(value, list | tuple):
        return type(value)(_freeze_value(v) for v in value)
    return value if isinstance(value, bool | int | float | str | None.__class__) else None


def _hint(size: Any) -> int:
    if isinstance(size, int):
        return size
    hint = size.node.hint
    return 2 if hint is None else int(hint)


def _thaw_value(value: Any, mode: FakeTensorMode) -> Any:
    if isinstance(value, _Value):
        element = torch.empty_strided(value.shape, value.stride, dtype=value.dtype, device="meta")
        return FakeTensor(mode, element, torch.device(value.device))
    if isinstance(value, list | tuple):
        return type(value)(_thaw_value(v, mode) for v in value)
    return value


def _freeze_spec(value: Any) -> Any:
    """Specs of arguments by what they hold: torch warns when one of a leaf is loaded."""
    if not isinstance(value, pytree.TreeSpec):
        return value
    return _Spec(value.type, value.context, tuple(map(_freeze_spec, value.children())))


def _thaw_spec(value: Any) -> Any:
    if not isinstance(value, _Spec):
        return value
    if value.type is None:
        return pytree.treespec_leaf()
    return pytree.TreeSpec(value.type, value.context, list(map(_thaw_spec, value.children)))


def _map_specs(codegen: Any, change: Callable[[Any], Any]) -> Any:
    """A copy of what writes the code of a graph with its specs frozen or thawed."""
    result = copy.copy(codegen)
    if isinstance(result, _PyTreeCodeGen):
        result.pytree_info = result.pytree_info._replace(
            **{k: change(v) for k, v in result.pytree_info._asdict().items()}
        )
    return result


def _freeze_graph(graph: Graph) -> tuple[Any, list[Any]]:
    rows = []
    for node in graph.nodes:
        refer: Any = lambda n: _Ref(n.name)  # noqa: E731 - FX types it as returning an argument
        args, kwargs = map_arg((node.args, node.kwargs), refer)
        meta = {key: node.meta[key] for key in (*COPIED_META, "from_node") if key in node.meta}
        meta["val"] = _freeze_value(node.meta.get("val"))
        rows.append((node.op, node.name, _freeze_target(node.target), args, kwargs, meta))
    return _map_specs(graph._codegen, _freeze_spec), rows


def _thaw_graph(codegen: Any, rows: list[Any]) -> Graph:
    graph = Graph()
    graph._codegen = _map_specs(codegen, _thaw_spec)
    nodes: dict[str, Node] = {}
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    for op, name, target, args, kwargs, meta in rows:
        args, kwargs = pytree.tree_map_only(_Ref, lambda r: nodes[r.name], (args, kwargs))
        meta["val"] = _thaw_value(meta["val"], mode)
        nodes[name] = restored(graph, op, _thaw_target(target), args, kwargs, name, meta)
    return graph


def _rebuild(
    state: dict[str, Any], frozen: tuple[Any, list[Any]], views: tuple[View, ...] = ()
) -> QuantGraphModule:
    root = torch.nn.Module()
    root.__dict__ = {k: _thaw_spec(v) for k, v in state.items()}
    result = QuantGraphModule(root, _thaw_graph(*frozen), record=state.get("record"))
    _copy_hooks(root, result)
    restore_views(_held_tensors(result), views)
    return result


def _held_tensors(model: QuantGraphModule) -> list[torch.Tensor]:
    """Parameters, buffers and the noted values of written ones, in the order of their names."""
    held: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    held.update(model.named_buffers(remove_duplicate=False))
    noted = model.record.facts.get("state", {})
    return [held[name] for name in sorted(held)] + [noted[name] for name in sorted(noted)]
