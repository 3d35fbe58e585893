"""What nodes say of where they come from, and how it is handed on."""

from __future__ import annotations

from typing import Any

from torch.fx import Node
from torch.fx.traceback import NodeSource, NodeSourceAction

COPIED_META = ("nn_module_stack", "stack_trace", "torch_fn", "custom")

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
