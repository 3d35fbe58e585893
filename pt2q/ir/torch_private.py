"""What pt2q uses of torch that torch keeps to itself: the one file that names it.

Everything else asks this file, so that a new release of torch is read through here first. `CHECKED`
says on which release each name was last seen to do what its row says.

Left where they are used: the dictionaries that hold what a module owns (``_parameters``,
``_buffers``, ``_modules``, ``_non_persistent_buffers_set``). Subclasses of `torch.nn.Module` have
written to them since the first releases, and torch's own documentation does.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload as OpOverload
from torch._ops import OpOverloadPacket as OpOverloadPacket
from torch._subclasses.fake_tensor import FakeTensor as FakeTensor
from torch._subclasses.fake_tensor import FakeTensorMode as FakeTensorMode

# Registers the quantized_decomposed operators; a program that loads a saved model needs it too.
from torch.ao.quantization.fx import _decomposed as quantized_decomposed
from torch.fx import Graph, Node
from torch.fx.graph import _PyTreeCodeGen as PyTreeCodeGen
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes as disable_current_modes

CHECKED = {
    "torch._ops.OpOverload": "2.13.0",  # what node.target is; _schema, _overloadname
    "torch._ops.OpOverloadPacket": "2.13.0",  # .overloads() and one attribute for each
    "torch._subclasses.fake_tensor.FakeTensor": "2.13.0",  # FakeTensor(mode, meta tensor, device)
    "torch._subclasses.fake_tensor.FakeTensorMode": "2.13.0",  # allow_non_fake_inputs
    "torch.ao.quantization.fx._decomposed": "2.13.0",  # importing it registers the operators
    "torch.fx.graph.Graph._codegen": "2.13.0",  # how the forward of a graph is written
    "torch.fx.graph.Graph._tracer_cls": "2.13.0",  # handed on to a copy
    "torch.fx.graph._PyTreeCodeGen": "2.13.0",  # its pytree_info holds the specs of arguments
    "torch.fx.node.Node._erased": "2.13.0",  # set by Graph.erase_node
    "torch.utils._pytree": "2.13.0",  # tree_flatten and kin, TreeSpec
    "torch.utils._python_dispatch._disable_current_modes": "2.13.0",  # a context manager
    "torch.storage.UntypedStorage._cdata": "2.13.0",  # the address of the storage object
    "torch._dynamo.exc.TorchDynamoException": "2.13.0",  # the base of what capturing raises
    "torch._inductor": "2.13.0",  # modules that `inductor` gives
}
"""Name and the release it was checked on."""

__all__ = [
    "CHECKED",
    "FakeTensor",
    "FakeTensorMode",
    "OpOverload",
    "OpOverloadPacket",
    "PyTreeCodeGen",
    "codegen_of",
    "disable_current_modes",
    "inductor",
    "is_erased",
    "overload_name",
    "pytree",
    "quantized_decomposed",
    "schema_of",
    "set_codegen",
    "storage_address",
    "tracer_class",
]


def schema_of(target: Any) -> Any:
    """The schema of an operator: ``arguments``, ``returns``, ``is_mutable``.

    Args:
        target: what a node calls.

    Returns:
        A ``torch.FunctionSchema``, or None for what is no operator overload.
    """
    return getattr(target, "_schema", None)


def overload_name(target: OpOverload) -> str:
    """The part of an overload's name that its packet knows it by: ``Tensor`` or ``default``."""
    return str(target._overloadname)


def codegen_of(graph: Graph) -> Any:
    """What writes the Python code of a graph; says how arguments are packed."""
    return graph._codegen


def set_codegen(graph: Graph, codegen: Any) -> None:
    """Let another object write the code of a graph.

    Args:
        graph: the graph.
        codegen: from `codegen_of` another graph, or a copy of it.
    """
    graph._codegen = codegen


def tracer_class(graph: Graph) -> Any:
    """The class of the tracer that made a graph, or None."""
    return graph._tracer_cls


def is_erased(node: Node) -> bool:
    """Whether a node was taken out of its graph."""
    return bool(node._erased)


def storage_address(tensor: Tensor) -> int:
    """A number that two tensors have in common while they live exactly if they share storage.

    Args:
        tensor: strided, with a storage; a fake one has one too.
    """
    return int(tensor.untyped_storage()._cdata)


def inductor(module: str) -> ModuleType:
    """A module of Inductor, which is private as a whole; loaded at the first call, in a second.

    Args:
        module: its name below ``torch._inductor``, such as ``config``.
    """
    return importlib.import_module(f"{torch.__name__}._inductor.{module}")
