"""Insert the observers, or fake quantizers, that a plan asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch.fx import Graph, Node

from pt2q.ir.control_flow import graph_modules
from pt2q.ir.emit import Emitter
from pt2q.ir.graph import add_meta, edge_name, get_constant, is_constant
from pt2q.ir.module import QuantGraphModule
from pt2q.ir.storage import StorageMap, release
from pt2q.observers.foreign import is_foreign
from pt2q.observers.make import Observers, make_observers
from pt2q.observers.protocol import complete, set_for_constant
from pt2q.spec.plan import Plan

OBSERVER_NAME = "activation_post_process"


@dataclass(frozen=True)
class InsertObservers:
    """Put a call of its observer behind every planned value.

    A node's output is observed once, directly behind it, and all its users read the observed
    value. An edge with other parameters has an observer of its own behind that. Where storage is
    written later, the observer stands directly before each reader instead.

    Args:
        plan: what is quantized.
        callback: sees the observers by edge and node before insertion and may replace them.
        is_qat: insert fake quantizers.
        made: the plan's observers, for a plan of several programs; None makes them.
    """

    whole_model = True

    plan: Plan
    callback: Callable[[QuantGraphModule, Observers], None] | None = None
    is_qat: bool = False
    made: Observers | None = field(default=None, repr=False, compare=False)

    def __call__(self, model: QuantGraphModule) -> bool:
        """Insert; see the class."""
        if self.made is None:
            observers = make_observers(self.plan, is_qat=self.is_qat)
        else:
            observers = _of_model(self.made, model)
        if self.callback is not None:
            self.callback(model, observers)
        for edge_or_node, observer in observers.items():
            group = self.plan.group_of.get(edge_or_node)
            if group is not None:
                complete(observer, self.plan.groups[group].spec)
        for edge_or_node, reason in self.plan.skipped:
            model.record.note("insert_observers", edge_name(edge_or_node), reason)
        for module in graph_modules(model):
            assert isinstance(module, QuantGraphModule)
            _Inserter(module, observers, self.is_qat).run()
        return bool(observers)


def _of_model(observers: Observers, model: QuantGraphModule) -> Observers:
    """Those of the values in the graphs of one program."""
    graphs = {module.graph for module in graph_modules(model)}
    return {
        key: observer
        for key, observer in observers.items()
        if (key if isinstance(key, Node) else key[0]).graph in graphs
    }


class _Inserter:
    def __init__(self, model: QuantGraphModule, observers: Observers, is_qat: bool) -> None:
        self.model = model
        self.graph: Graph = model.graph
        self.observers = observers
        self.emit = Emitter(model, "pt2q.insert_observers")
        self.storage = StorageMap.of(model.graph)
        self.target: dict[int, str] = {}
        self.inputs_end = self._last_placeholder()
        self.is_qat = is_qat
        self.name_calls = any(is_foreign(observer) for observer in observers.values())
        self.values: dict[int, set[Any]] = {}
        for key, observer in observers.items():
            value = key if isinstance(key, Node) else key[0]
            constant = str(value.target) if is_constant(value) else value
            self.values.setdefault(id(observer), set()).add(constant)

    def _last_placeholder(self) -> Node | None:
        inputs = [n for n in self.graph.nodes if n.op == "placeholder"]
        return inputs[-1] if inputs else None

    def run(self) -> None:
        for node in list(self.graph.nodes):
            users = list(node.users)
            if self.storage.written_later(node):
                self._before_each_reader(node, users)
            else:
                self._behind(node, users)

    def _behind(self, node: Node, users: list[Node]) -> None:
        observed = node
        output = self.observers.get(node)
        if output is not None:
            observed = self._call(output, node, node, users)
            self._redirect(users, node, observed)
        placed: dict[int, Node] = {id(output): observed} if output is not None else {}
        for user in users:
            observer = self.observers.get((node, user))
            if observer is None or self.storage.must_write_through(node, user):
                continue
            if id(observer) not in placed:
                placed[id(observer)] = self._call(observer, observed, node, [user])
            user.replace_input_with(observed, placed[id(observer)])

    def _redirect(self, users: list[Node], node: Node, observed: Node) -> None:
        for user in users:
            if not self.storage.must_write_through(node, user):
                user.replace_input_with(node, observed)

    def _before_each_reader(self, node: Node, users: list[Node]) -> None:
        output = self.observers.get(node)
        for user in users:
            if self.storage.must_write_through(node, user):
                continue
            observed = node
            edge = self.observers.get((node, user))
            for observer in [output] if edge is output else [output, edge]:
                if observer is not None:
                    new = self._call(observer, observed, node, [user], before=user)
                    user.replace_input_with(observed, new)
                    observed = new

    def _call(
        self,
        observer: Any,
        value: Node,
        source: Node,
        users: list[Node],
        before: Node | None = None,
    ) -> Node:
        target = self._register(observer, source)
        described = next((n for n in (source, *users) if "nn_module_stack" in n.meta), source)
        self._place(value, before, described)
        new = self.emit.observe(target, value)
        add_meta(new, source)
        if is_constant(source) and not (self.is_qat or self.storage.is_mutated(source)):
            self._watch_constant(observer, source)
        return new

    def _place(self, value: Node, before: Node | None, origin: Node) -> None:
        if before is not None:
            self.emit.before(before, origin)
        elif value.op == "placeholder" and self.inputs_end is not None:
            self.emit.after(self.inputs_end, origin)
        else:
            self.emit.after(value, origin)

    def _register(self, observer: Any, source: Node) -> str:
        """The name of an observer; one that is shared has one name.

        Observers of other libraries look others up by the names of the nodes that call them:
        beside these, each call has a name.
        """
        if self.name_calls or id(observer) not in self.target:
            name = self.emit.names.numbered(OBSERVER_NAME)
            self.model.add_module(name, observer)
            observer.node_name = source.name
            observer.train(self.model.training)
            self.target[id(observer)] = name
        return self.target[id(observer)]

    def _watch_constant(self, observer: Any, source: Node) -> None:
        """A weight is observed at once; alone in its group, again only when it changes."""
        set_for_constant(observer, alone=len(self.values[id(observer)]) == 1)
        observer(get_constant(self.model, source))
        release()
