"""What nodes carry besides their computation, and how it is handed on.

A node that stands for another one carries all of its metadata: what export wrote, and whatever a
quantizer, a backend or the user tagged it with under keys that nobody here knows. Only what
belongs to the one node stays behind (`OWN_META`).
"""

from __future__ import annotations

from typing import Any

from torch.fx import Node
from torch.fx.traceback import NodeSource, NodeSourceAction

QUANT_ANNOTATION_KEY = "quantization_annotation"
"""Where in ``node.meta`` a quantizer says how the node is quantized."""

CUSTOM_KEY = "custom"
"""Where torch keeps what users say of a node: a dictionary, which several nodes may share."""

FROM_NODE_KEY = "from_node"
"""Where torch keeps which nodes a node stands for."""

OWN_META = frozenset(
    {
        "val",
        "tensor_meta",
        "example_value",
        "eager_input_vals",
        "arg_kwarg_vals",
        "unbacked_bindings",  # which symbols the node introduces
        "from_node",
        QUANT_ANNOTATION_KEY,
    }
)
"""What says something of one call alone: its value, its history, how it is to be quantized."""

TRACE_META = ("nn_module_stack", "stack_trace", "torch_fn")
"""What export says of where an operator is in the user's program."""

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
        source: that node.
        pass_name: who made it; recorded in ``from_node``.
        value: its fake value; None copies that of ``source``.
    """
    new.meta.update(handed_on(source))
    new.meta["val"] = source.meta.get("val") if value is None else value
    new.meta["from_node"] = provenance(source, pass_name)


def handed_on(source: Node) -> dict[str, Any]:
    """The metadata of a node that a node in its place carries, too."""
    return {key: value for key, value in source.meta.items() if key not in OWN_META}


def add_meta(node: Node, *others: Node) -> None:
    """Let a node that stands for several carry what it lacks of the metadata of the others.

    Args:
        node: what it carries already stays.
        others: the nodes that it stands for, too, the nearest first.
    """
    for other in others:
        found = {**handed_on(other), **node.meta}
        if other.meta.get(CUSTOM_KEY) and node.meta.get(CUSTOM_KEY):
            found[CUSTOM_KEY] = {**other.meta[CUSTOM_KEY], **node.meta[CUSTOM_KEY]}
        node.meta.update(found)


HANDLE_KEY = "numeric_debug_handle"
"""Where in ``node.meta["custom"]`` the handle of a node is; see `pt2q.debug`."""


def handle_of(node: Node) -> int | None:
    """The numeric debug handle of a node, or None."""
    return (node.meta.get(CUSTOM_KEY) or {}).get(HANDLE_KEY)


def set_handle(node: Node, handle: int) -> None:
    """Give a node a handle; other nodes may share its ``custom`` dictionary, which is copied."""
    node.meta[CUSTOM_KEY] = {**(node.meta.get(CUSTOM_KEY) or {}), HANDLE_KEY: handle}


def origin_name(node: Node) -> str:
    """What the node that a node goes back to was called in the exported program.

    Exporting anew, decompositions and passes hand ``from_node`` on; the oldest entry says it.
    """
    name, at = node.name, node.meta.get("from_node")
    while at:
        name, at = at[-1].name, at[-1].from_node
    return name


def carry(node: Node, *sources: Node) -> None:
    """Let a node carry the metadata of others in place of its own, but for what is its own alone.

    Args:
        node: keeps its value and its history.
        sources: what it stands for or belongs to; where two say something else, the first holds.
    """
    replace_meta(node, {key: value for key, value in node.meta.items() if key in OWN_META})
    add_meta(node, *sources)


def replace_meta(node: Node, meta: dict[str, Any]) -> None:
    """Give a node other metadata.

    Past Node's own way, which makes the graph's index of operators and targets anew.
    """
    object.__setattr__(node, "meta", meta)


def stand_for(node: Node, replaced: Node, pass_name: str) -> None:
    """Put on record that a node gives from now on the value that another one gave.

    It carries what the other one carried, and goes back to both: to the other one last, which is
    the entry that says whose value it has.

    Args:
        node: a convolution that its batch norm was folded into, say; its own metadata stays.
        replaced: the node whose value it gives, before that is erased.
        pass_name: who did it; recorded in ``from_node``.
    """
    add_meta(node, replaced)
    node.meta["from_node"] = [*node.meta.get("from_node", ()), *provenance(replaced, pass_name)]
    handle = handle_of(replaced)
    if handle is not None:
        set_handle(node, handle)
