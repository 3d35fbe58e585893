"""What of Inductor's own modules is used, and its settings while it compiles for us.

Inductor is private as a whole (`pt2q.ir.torch_private` says what was checked); the other files of
this folder ask this one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch.fx import Graph, GraphModule

from pt2q.ir.torch_private import MAY_ADD_IN_PLACE, private
from pt2q.library_output import quiet_python

TorchDynamoException = private("torch._dynamo.exc.TorchDynamoException")
aoti_compile_and_package = private("torch._inductor.aoti_compile_and_package")
aoti_load_package = private("torch._inductor.aoti_load_package")
compile_fx = private("torch._inductor.compile_fx.compile_fx")
config = private("torch._inductor.config")
CustomGraphPass = private("torch._inductor.custom_graph_pass.CustomGraphPass")
mkldnn_fusion = private("torch._inductor.fx_passes.mkldnn_fusion")
V = private("torch._inductor.virtualized.V")

CACHE_TAG = "pt2q"
"""Keeps what is compiled here apart, in Inductor's caches, from what is compiled without us."""

_one_at_a_time = threading.RLock()


@contextmanager
def compiling(*, cached: bool = True) -> Iterator[None]:
    """What Inductor needs while it compiles a quantized model; nothing of it outlives the block.

    Freezing is what lets it pack int8 weights, and works without autograd only. What it prints is
    hidden, and one thread compiles at a time.

    Args:
        cached: False compiles even what Inductor has in its cache.
    """
    with ExitStack() as stack:
        stack.enter_context(_one_at_a_time)
        stack.enter_context(torch.no_grad())
        stack.enter_context(quiet_python())
        stack.enter_context(_patched(config, freezing=True))
        stack.enter_context(_patched(torch.compiler.config, cache_key_tag=CACHE_TAG))
        stack.enter_context(_sums_into_temporaries())
        if not cached:
            stack.enter_context(_patched(config, fx_graph_cache=False))
        yield


def _patched(settings: Any, **values: Any) -> AbstractContextManager[Any]:
    """Settings of a config module of torch, for the length of a block."""
    context: AbstractContextManager[Any] = settings.patch(**values)
    return context


@contextmanager
def _sums_into_temporaries() -> Iterator[None]:
    original = getattr(mkldnn_fusion, MAY_ADD_IN_PLACE, None)
    if original is None:  # a torch without oneDNN fuses nothing
        yield
        return
    guarded = _writes_temporaries_only(original)
    with mock.patch.object(mkldnn_fusion, MAY_ADD_IN_PLACE, guarded):
        yield


def _writes_temporaries_only(original: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Inductor's own test of whether a kernel may add into a tensor, made safe.

    It forgets that the tensor may be an input of the graph or a frozen parameter: the kernel would
    overwrite the caller's memory, and the next call would start from the sum.
    """

    def may_write(other: Any) -> bool:
        name = other.get_name()
        foreign = name in V.graph.graph_inputs or name in V.graph.constants
        return not foreign and bool(original(other))

    return may_write


class _Watch(CustomGraphPass):  # type: ignore[misc, valid-type]
    """A pass of Inductor that changes nothing."""

    def __init__(self, record: Callable[[Graph], None]) -> None:
        self._record = record

    def __call__(self, graph: Graph) -> None:
        self._record(graph)

    def uuid(self) -> str:
        return CACHE_TAG


def compile_watched(
    graph: GraphModule, inputs: list[Any], record: Callable[[Graph], None]
) -> Callable[..., Any]:
    """Compile a graph as a backend of ``torch.compile`` does.

    Args:
        graph, inputs: what a backend is given.
        record: is shown Inductor's graph, all fusions made, before code is generated from it.
    """
    with _patched(config, post_grad_custom_post_pass=_Watch(record)):
        compiled: Any = compile_fx(graph, inputs)
    return compiled  # type: ignore[no-any-return]
