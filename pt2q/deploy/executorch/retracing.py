"""Values of operators worked out once, however often the passes of a lowering go through a graph.

ExecuTorch's passes go through a program by running it with fake tensors, each node anew, some
twenty times. An operator that is given the very tensors and numbers that it was given before gives
the tensor that it gave before; a graph that no pass has touched since it was last gone through
comes out as it went in.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.fx import Graph, GraphModule
from torch.fx.passes.infra.pass_base import PassResult

from pt2q.ir.torch_private import FakeTensor, pytree, schema_of
from pt2q.optional import optional_modules
from pt2q.replaced import replaced

_PLAIN = (
    *(int, float, bool, str, type(None)),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
)
_OWN_WAYS = (
    *("call_cond", "call_delegate", "call_getitem", "call_map", "call_operator", "call_scan"),
    *("call_submodule", "call_sym", "call_while", "inputs", "on_attr", "output", "placeholder"),
)
"""What a pass overrides that changes a program while it goes through it."""
_RUN = "_fx"
"""Private of ExecuTorch: what runs an operator and writes its node."""


@contextmanager
def gone_through_where_changed() -> Iterator[None]:
    """Keep the values of operators, and leave graphs as they are that nothing has changed.

    Lowerings take turns: each puts back what it found.
    """
    (passes,) = optional_modules("executorch.exir.pass_base", extra="executorch")
    owner = passes.ExportPass
    instead = {
        _RUN: _with_known_values(passes, getattr(owner, _RUN)),
        "call": _where_changed(owner, owner.call),
    }
    with replaced(owner, **instead):
        yield


def _where_changed(plain: Any, call: Callable[..., Any]) -> Callable[..., Any]:
    """Going through a graph, but where that gave it and neither it nor the pass has a change."""
    given: WeakKeyDictionary[Graph, Any] = WeakKeyDictionary()

    def called(self: Any, module: GraphModule) -> Any:
        known = given.get(module.graph)
        if known is not None and _changes_nothing(type(self), plain) and _same(known, module.graph):
            return PassResult(module, True)
        result = call(self, module)
        graph = result.graph_module.graph
        if all(node.op != "get_attr" for node in graph.nodes):
            given[graph] = _state(graph)
        return result

    return called


def _changes_nothing(kind: type, plain: type) -> bool:
    return all(getattr(kind, name) is getattr(plain, name) for name in _OWN_WAYS)


def _state(graph: Graph) -> list[tuple[Any, ...]]:
    """What going through a graph reads."""
    return [(n, n.target, n.args, n.kwargs, n.meta.get("val")) for n in graph.nodes]


def _same(before: list[tuple[Any, ...]], graph: Graph) -> bool:
    now = _state(graph)
    return len(before) == len(now) and all(
        all(map(operator.is_, one, other)) for one, other in zip(before, now, strict=True)
    )


class _NotKnown(Exception):
    """An argument that is neither a fake tensor of fixed size nor a plain value."""


class _Values:
    """What operators and delegates gave, by what they were given.

    Fake tensors and delegates are told apart by their addresses, so those that were seen are kept.
    """

    def __init__(self, holder: type, delegate: Any) -> None:
        self._holder, self._delegate = holder, delegate
        self._found: dict[Any, Any] = {}
        self._seen: list[Any] = []

    def get(self, key: Any) -> Any:
        """What an operator gave, or None."""
        return self._found.get(key)

    def keep(self, key: Any, given: Any, found: Any) -> None:
        """Keep what an operator gave, where that is fake tensors of fixed sizes alone."""
        with suppress(_NotKnown):
            self.key(found)
            self._found[key] = found
            self._seen.append(given)

    def call_key(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        """What the value of a call depends on; None where that is not known."""
        schema = schema_of(target)
        is_operator = schema is not None and not schema.is_mutable
        if kind != "call_function" or not (is_operator or target is self._delegate):
            return None
        if not any(isinstance(x, self._holder) for x in pytree.tree_leaves((args, kwargs))):
            return None  # what is made of nothing belongs to the program that makes it
        try:
            return target, self.key(args), self.key(kwargs)
        except _NotKnown:
            return None

    def key(self, given: Any) -> Any:
        """What tells an argument from others.

        Raises:
            _NotKnown: its sizes are not fixed, or it holds values.
        """
        if isinstance(given, self._holder):
            given = given.data  # type: ignore[attr-defined]
        if isinstance(given, (tuple, list)):
            return tuple(map(self.key, given))
        if isinstance(given, dict):
            return tuple((name, self.key(value)) for name, value in given.items())
        if isinstance(given, _PLAIN):
            return type(given), given
        if isinstance(given, nn.Module) or (isinstance(given, FakeTensor) and _is_fixed(given)):
            return id(given)
        raise _NotKnown


def _is_fixed(tensor: FakeTensor) -> bool:
    sizes = (*tensor.shape, *tensor.stride(), tensor.storage_offset())
    return tensor.constant is None and all(type(size) is int for size in sizes)


class _Known:
    """Stands for what runs operators, and gives a value that is known."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """The value."""
        return self._value


def _with_known_values(passes: Any, run: Callable[..., Any]) -> Callable[..., Any]:
    values = _Values(passes.ProxyValue, passes.executorch_call_delegate)

    def known(self: Any, kind: str, target: Any, args: Any, kwargs: Any, meta: Any) -> Any:
        key = values.call_key(kind, target, args, kwargs)
        value = None if key is None else values.get(key)
        if value is None:
            found = run(self, kind, target, args, kwargs, meta)
            if key is not None:
                values.keep(key, (args, kwargs), found.data)
            return found
        before, self.interpreter = self.interpreter, _Known(value)
        try:
            return run(self, kind, target, args, kwargs, meta)
        finally:
            self.interpreter = before

    return known
