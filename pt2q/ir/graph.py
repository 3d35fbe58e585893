"""Typed access to exported graphs: nodes, edges, constants, metadata, a text dump.

Everything here is linear in what it is asked about: names are drawn from a set that is built
once, and edges are edited through the consumer that changes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.traceback import NodeSource, NodeSourceAction
from torch.utils._python_dispatch import _disable_current_modes

from pt2q.spec.specs import QUANT_ANNOTATION_KEY, EdgeOrNode, QuantizationAnnotation

COPIED_META = ("nn_module_stack", "stack_trace", "torch_fn", "custom")


# ------------------------------------------------------------------ values


def value_of(node: Node) -> Any:
    """The fake value recorded for a node by export, or None."""
    return node.meta.get("val")


def is_float_tensor(node: object) -> bool:
    """Whether a node's output is one floating point tensor (not a tuple, scalar or integer)."""
    if not isinstance(node, Node):
        return False
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype.is_floating_point


def fake_like(value: Any, dtype: torch.dtype) -> Any:
    """The fake value of ``value`` stored as another dtype.

    Args:
        value: a fake tensor, or anything else (given back unchanged).
        dtype: the new dtype; shape, strides and device stay.
    """
    if not isinstance(value, torch.Tensor) or value.dtype == dtype:
        return value
    if not isinstance(value, FakeTensor):
        return torch.empty_like(value, dtype=dtype, device="meta")
    # Built directly: dispatching `to` through the fake mode costs 10 to 20 times as much.
    with _disable_current_modes():
        element = torch.empty_strided(value.shape, value.stride(), dtype=dtype, device="meta")
    return FakeTensor(value.fake_mode, element, value.device)


def fake_constant(value: torch.Tensor, like: Any) -> Any:
    """A fake value for a new constant, in the fake mode that ``like`` belongs to.

    Args:
        value: the real tensor.
        like: a fake tensor of the same graph; without one the meta tensor is used.
    """
    with _disable_current_modes():
        element = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    if not isinstance(like, FakeTensor):
        return element
    return FakeTensor(like.fake_mode, element, value.device)


# ------------------------------------------------------------------ metadata


OWN_PASSES = "pt2q."
"""How the names of the passes in ``from_node`` begin, to tell them from those of export."""


def provenance(node: Node, pass_name: str) -> list[NodeSource]:
    """``from_node`` of a new node that stands for ``node``.

    Args:
        node: the node it was made for.
        pass_name: who made it.
    """
    named = pass_name if pass_name.startswith(OWN_PASSES) else OWN_PASSES + pass_name
    source = NodeSource(None, named, NodeSourceAction.CREATE)
    source.node_info = NodeSource.NodeInfo(node.name, str(node.target), id(node.graph))
    source.from_node = list(node.meta.get("from_node", ()))
    return [source]


def copy_meta(new: Node, source: Node, pass_name: str, value: Any = None) -> None:
    """Give a new node the metadata of the node it was made for.

    Args:
        new: the node just created.
        source: the node whose module path and stack trace it inherits.
        pass_name: who made it; recorded in ``from_node``.
        value: its fake value; None copies that of ``source``.
    """
    for key in COPIED_META:
        if key in source.meta:
            new.meta[key] = source.meta[key]
    new.meta["val"] = source.meta.get("val") if value is None else value
    new.meta["from_node"] = provenance(source, pass_name)


HANDLE_KEY = "numeric_debug_handle"
"""Where in ``node.meta["custom"]`` the handle of a node is; see `pt2q.debug`."""


def handle_of(node: Node) -> int | None:
    """The numeric debug handle of a node, or None."""
    return (node.meta.get("custom") or {}).get(HANDLE_KEY)


def set_handle(node: Node, handle: int) -> None:
    """Give a node a handle; other nodes may share its ``custom`` dictionary, which is copied."""
    node.meta["custom"] = {**(node.meta.get("custom") or {}), HANDLE_KEY: handle}


def origin_name(node: Node) -> str:
    """What the node that a node goes back to was called in the exported program.

    Exporting anew, decompositions and passes hand ``from_node`` on; the oldest entry says it.
    """
    name, at = node.name, node.meta.get("from_node")
    while at:
        name, at = at[-1].name, at[-1].from_node
    return name


def stand_for(node: Node, replaced: Node, pass_name: str) -> None:
    """Put on record that a node gives from now on the value that another one gave.

    Args:
        node: a convolution that its batch norm was folded into, say.
        replaced: the node whose value it gives, before that is erased.
        pass_name: who did it; recorded in ``from_node``.
    """
    node.meta["from_node"] = provenance(replaced, pass_name)
    handle = handle_of(replaced)
    if handle is not None:
        set_handle(node, handle)


def module_path(node: Node) -> str:
    """The qualified name of the innermost module a node was traced in, "" for the root."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    return normalize_path(str(list(stack.values())[-1][0]))


def module_stack(node: Node) -> tuple[tuple[str, str], ...]:
    """(qualified name, class name) of every module a node was traced in, outermost first."""
    stack = node.meta.get("nn_module_stack") or {}
    return tuple((normalize_path(str(path)), _class_name(kind)) for path, kind in stack.values())


def _class_name(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__qualname__}" if isinstance(kind, type) else str(kind)


def normalize_path(path: str) -> str:
    """A module path as ``named_modules`` writes it.

    Strict export writes ``L['self'].block._modules['0']`` or ``L__self___block_0``-like names in
    places; what can be told apart is turned into ``block.0``.

    Args:
        path: the path recorded in ``nn_module_stack``.
    """
    path = re.sub(r"^L\['self'\]\.?|^L__self__\.?", "", path)
    path = re.sub(r"\._modules\['([^']+)'\]", r".\1", path)
    path = re.sub(r"^_modules\['([^']+)'\]", r"\1", path)
    path = re.sub(r"getattr\((.+?), '([^']+)'\)", r"\1.\2", path)
    # A module called several times in one model is recorded as name@1, name@2, ...
    return re.sub(r"@\d+", "", path)


def annotation_of(node: Node) -> QuantizationAnnotation | None:
    """The annotation of a node, or None."""
    found: QuantizationAnnotation | None = node.meta.get(QUANT_ANNOTATION_KEY)
    return found


# ------------------------------------------------------------------ edges


def inputs_of(node: Node) -> list[Node]:
    """The nodes a node reads, each once, in the order of its arguments."""
    return list(node.all_input_nodes)


def redirect(consumers: Iterable[Node], old: Node, new: Node) -> None:
    """Make some consumers of ``old`` read ``new`` instead.

    Args:
        consumers: nodes that read ``old``; ``new`` itself is passed over.
        old, new: nodes of the same graph.
    """
    for consumer in list(consumers):
        if consumer is not new:
            consumer.replace_input_with(old, new)


def edge_name(edge_or_node: EdgeOrNode) -> str:
    """How an edge or node is called in messages: ``conv1`` or ``relu -> conv1``."""
    if isinstance(edge_or_node, Node):
        return edge_or_node.name
    return f"{edge_or_node[0].name} -> {edge_or_node[1].name}"


# ------------------------------------------------------------------ constants


def is_constant(node: object) -> bool:
    """Whether a node reads a parameter, buffer or lifted constant of the module."""
    return isinstance(node, Node) and node.op == "get_attr"


def get_constant(model: GraphModule, node: Node | str) -> torch.Tensor:
    """The tensor a ``get_attr`` node reads.

    Args:
        model: the module that owns the graph.
        node: the node, or its target.

    Raises:
        AttributeError: nothing is there.
        TypeError: what is there is not a tensor.
    """
    target = node if isinstance(node, str) else str(node.target)
    found: Any = model
    for part in target.split("."):
        found = getattr(found, part)
    if not isinstance(found, torch.Tensor):
        raise TypeError(f"{target} is a {type(found).__name__}, not a tensor")
    return found


def _owner(model: GraphModule, target: str, create: bool) -> tuple[torch.nn.Module, str]:
    *path, name = target.split(".")
    owner: torch.nn.Module = model
    for part in path:
        if create and part not in owner._modules:
            owner.add_module(part, torch.nn.Module())
        owner = getattr(owner, part)
    return owner, name


def set_constant(
    model: GraphModule, target: str, value: torch.Tensor, *, persistent: bool = True
) -> None:
    """Store a tensor under a qualified name, as a Parameter if it is one, else as a buffer.

    Args:
        model: the module that owns the graph.
        target: the qualified name; missing submodules are made.
        value: what to store; replaces what is there.
        persistent: whether a buffer belongs to the state dict.
    """
    owner, name = _owner(model, target, create=True)
    owner._parameters.pop(name, None)
    owner._buffers.pop(name, None)
    owner.__dict__.pop(name, None)
    if isinstance(value, torch.nn.Parameter):
        owner.register_parameter(name, value)
    else:
        owner.register_buffer(name, value, persistent=persistent)


def delete_constant(model: GraphModule, target: str) -> None:
    """Remove a tensor from the module; nothing happens if it is not there.

    Args:
        model: the module that owns the graph; no node of it may read the tensor.
        target: the qualified name.
    """
    path, _, name = target.rpartition(".")
    owner: Any = model
    for part in path.split(".") if path else ():
        owner = getattr(owner, part, None)
    if owner is not None and hasattr(owner, name):
        delattr(owner, name)


def is_parameter(model: GraphModule, target: str) -> bool:
    """Whether the qualified name is a Parameter of the module."""
    owner, name = _owner(model, target, create=False)
    return name in owner._parameters


def is_persistent(model: GraphModule, target: str) -> bool:
    """Whether what has the qualified name belongs to the state dict.

    Args:
        model: the module that owns the graph.
        target: a qualified name; what does not exist counts as persistent.
    """
    path, _, name = target.rpartition(".")
    owner: Any = model
    for part in path.split(".") if path else ():
        owner = getattr(owner, part, None)
    return name not in getattr(owner, "_non_persistent_buffers_set", ())


def mutated_constants(graph: Graph) -> set[str]:
    """Targets of ``get_attr`` nodes that some operator writes into, directly or through a view."""
    written: set[str] = set()
    for node in graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if node.op != "call_function" or schema is None or not schema.is_mutable:
            continue
        for argument, value in zip(schema.arguments, node.args, strict=False):
            alias = argument.alias_info
            if alias is not None and alias.is_write and isinstance(value, Node):
                written.update(_roots(value))
    return written


def _roots(node: Node) -> Iterator[str]:
    """The constants a tensor may be a view of: follow first inputs back to their get_attr."""
    seen: set[Node] = set()
    while node not in seen:
        seen.add(node)
        if node.op == "get_attr":
            yield str(node.target)
            return
        if node.op != "call_function" or not node.all_input_nodes:
            return
        node = node.all_input_nodes[0]


@dataclass
class Names:
    """Fresh attribute names, drawn without probing.

    Args:
        taken: names already in use.
    """

    taken: set[str]
    _next: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, model: torch.nn.Module) -> Names:
        """All names of parameters, buffers and submodules of a module, dots as underscores too."""
        names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        names |= {name for name, _ in model.named_buffers(remove_duplicate=False)}
        names |= {name for name, _ in model.named_modules(remove_duplicate=False)}
        return cls(names)

    def fresh(self, base: str) -> str:
        """``base`` if free, else ``base_1``, ``base_2``, ... Marks it as taken."""
        if base not in self.taken:
            self.taken.add(base)
            return base
        return self.numbered(base, start=1)

    def numbered(self, base: str, start: int = 0) -> str:
        """``base_N`` with the next free N, counted from where the last call stopped."""
        number = self._next.get(base, start)
        while f"{base}_{number}" in self.taken:
            number += 1
        self._next[base] = number + 1
        self.taken.add(f"{base}_{number}")
        return f"{base}_{number}"


# ------------------------------------------------------------------ text


def _short(value: Any) -> str:
    if isinstance(value, Node):
        return f"%{value.name}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_short(v) for v in value) + "]"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def _label(node: Node) -> str:
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target)
    return (
        str(node.target)
        if isinstance(node.target, str)
        else getattr(node.target, "__name__", str(node.target))
    )


def dump(model: GraphModule | Graph) -> str:
    """The graph as text, one node a line: what golden tests compare.

    Args:
        model: a graph or the module that owns one.

    Returns:
        Lines such as ``%relu = aten.relu.default(%conv2d)``.
    """
    graph = model.graph if isinstance(model, GraphModule) else model
    lines = []
    for node in graph.nodes:
        if node.op == "output":
            lines.append(f"return {_short(node.args[0])}")
            continue
        if node.op in ("placeholder", "get_attr"):
            lines.append(f"%{node.name} = {node.op}({node.target})")
            continue
        arguments = [_short(a) for a in node.args]
        arguments += [f"{key}={_short(value)}" for key, value in node.kwargs.items()]
        lines.append(f"%{node.name} = {_label(node)}({', '.join(arguments)})")
    return "\n".join(lines)
