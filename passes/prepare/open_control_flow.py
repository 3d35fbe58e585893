"""Open control-flow operators for observation: their bodies get their own weights.

Export hands every weight that a body reads to it as an operand. Moved into the body, it is found by
the other passes like any other weight; `CloseControlFlow` hands what is left of it back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.fx import GraphModule, Node

from pt2q.ir.control_flow import Branching, branchings, graph_modules, placeholders
from pt2q.ir.emit import Emitter
from pt2q.ir.graph import (
    add_meta,
    get_constant,
    holds_tensor,
    is_constant,
    set_constant,
)
from pt2q.ir.module import QuantGraphModule
from pt2q.ir.storage import StorageMap

PASS_NAME = "pt2q.control_flow"


@dataclass(frozen=True)
class OpenControlFlow:
    """Make bodies self-contained and run them by Python functions.

    A body's nodes get the module stack of the operator that runs it, which export leaves empty,
    so that rules by module name reach into it.
    """

    whole_model = True

    def __call__(self, model: QuantGraphModule) -> bool:
        """Open every control-flow operator, nested ones too."""
        found = False
        for module in graph_modules(model):
            calls = list(branchings(module))
            if not calls:
                continue
            found = True
            storage = StorageMap.of(module.graph)
            for call in calls:
                _move_in(call, storage)
                _pass_stack(call)
                call.node.target = call.layout.runner
            _erase_unread(module)
        return found


def _move_in(call: Branching, storage: StorageMap) -> None:
    """Turn constant operands of the fixed group into constants of the bodies."""
    layout = call.layout
    fixed = call.group(layout.fixed)
    before = len(call.operands) - len(fixed)
    kept = []
    for operand in fixed:
        if not _is_movable(call, operand, storage):
            kept.append(operand)
            continue
        for body in call.bodies:
            _constant_for(body, before + len(kept), call.owner, operand)
    call.set_group(layout.fixed, kept)


def _is_movable(call: Branching, operand: Any, storage: StorageMap) -> bool:
    """Whether a body may hold a constant itself: what writes it, if anything, is in there."""
    if not is_constant(operand) or not holds_tensor(call.owner, operand):
        return False
    return all(writer is call.node for writer in storage.writers_of(operand))


def _constant_for(body: GraphModule, position: int, owner: GraphModule, operand: Node) -> None:
    """Replace a placeholder of a body by a constant that the body owns."""
    old = placeholders(body)[position]
    target = str(operand.target)
    if old.users:
        set_constant(body, target, get_constant(owner, operand))
        # Behind the inputs, so that closing, which adds one for it, adds it before its readers.
        inputs = ("placeholder", "get_attr")
        following = next(node for node in body.graph.nodes if node.op not in inputs)
        new = Emitter(body, PASS_NAME).before(following, origin=old).read(target)
        new.meta = dict(old.meta)
        add_meta(new, operand)
        old.replace_all_uses_with(new)
    body.graph.erase_node(old)


def _pass_stack(call: Branching) -> None:
    for body in call.bodies:
        for node in body.graph.nodes:
            for key in ("nn_module_stack", "stack_trace"):
                if not node.meta.get(key) and call.node.meta.get(key):
                    node.meta[key] = call.node.meta[key]


def _erase_unread(module: GraphModule) -> None:
    for node in [n for n in module.graph.nodes if n.op == "get_attr" and not n.users]:
        module.graph.erase_node(node)
