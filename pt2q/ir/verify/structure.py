"""Laws of structure: what is read is there, what is there is read."""

from __future__ import annotations

from torch.fx import GraphModule

from pt2q.ir.graph import find_attribute, is_observer, named_tensors
from pt2q.ir.record import Stage, stage_of
from pt2q.ir.verify.laws import Found, law


@law("lint", always=True)
def lint(model: GraphModule) -> Found:
    """The graph is well formed: nothing is read before it is made, names are unique."""
    try:
        model.graph.lint()
    except Exception as error:
        yield "graph", f"does not lint: {error}"


@law("attributes", always=True)
def attributes(model: GraphModule) -> Found:
    """What the graph reads or calls is in the module."""
    for node in model.graph.nodes:
        if node.op not in ("get_attr", "call_module"):
            continue
        if find_attribute(model, str(node.target)) is None:
            yield node.name, f"refers to {node.target!r}, which the module does not have"


@law("unused")
def unused(model: GraphModule) -> Found:
    """What the module holds is read: after conversion all of it, before that the observers."""
    nodes = [n for n in model.graph.nodes if n.op in ("get_attr", "call_module")]
    read = {str(n.target) for n in nodes}
    for name, module in model.named_modules(remove_duplicate=False):
        if name and is_observer(module) and not _is_read(name, read):
            yield name, "is an observer that no node calls"
    if stage_of(model) is not Stage.CONVERTED:
        return
    for name in named_tensors(model):
        if not _is_read(name, read):
            yield name, "is held by the module and read by no node"
    for node in nodes:
        if not node.users and node.op == "get_attr":
            yield node.name, f"reads {node.target!r} for nobody"


def _is_read(name: str, read: set[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[: i + 1]) in read for i in range(len(parts)))
