"""What pt2q uses of torch that torch keeps to itself: the one file that names it.

Everything else asks this file, so that a new release of torch is read through here first. `CHECKED`
says on which release each name was last seen to do what its row says.

Left where they are used: the dictionaries that hold what a module owns (``_parameters``,
``_buffers``, ``_modules``, ``_non_persistent_buffers_set``), which subclasses of `torch.nn.Module`
have written to since the first releases. `make lint` finds every other private name.
"""

from __future__ import annotations

import functools
import pkgutil
import re
import sys
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._ops import OpOverload as OpOverload
from torch._ops import OpOverloadPacket as OpOverloadPacket
from torch._subclasses.fake_tensor import FakeTensor as FakeTensor
from torch._subclasses.fake_tensor import FakeTensorMode as FakeTensorMode

# Registers the quantized_decomposed operators; a program that loads a saved model needs it too.
from torch.ao.quantization.fx import _decomposed as quantized_decomposed
from torch.export._tree_utils import reorder_kwargs as reorder_kwargs
from torch.fx import Graph, GraphModule, Node
from torch.fx.graph import _PyTreeCodeGen as PyTreeCodeGen
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes as disable_current_modes

from pt2q.replaced import replaced

CHECKED = {
    "torch._ops": "2.13.0",  # py_impl writes the type Callable[_P, _T] anew in each call
    "torch._ops.OpOverload": "2.13.0",  # what node.target is; _schema, _overloadname
    "torch._ops.OpOverloadPacket": "2.13.0",  # .overloads() and one attribute for each
    "torch._subclasses.fake_tensor.FakeTensor": "2.13.0",  # FakeTensor(mode, meta tensor, device)
    "torch._subclasses.fake_tensor.FakeTensorMode": "2.13.0",  # allow_non_fake_inputs
    "torch.ao.quantization.fx._decomposed": "2.13.0",  # importing it registers the operators
    "torch.fx.graph.Graph._codegen": "2.13.0",  # how the forward of a graph is written
    "torch.fx.graph.Graph._find_nodes_lookup_table": "2.13.0",  # Node.__setattr__ asks for it
    "torch.fx.graph.Graph._tracer_cls": "2.13.0",  # handed on to a copy
    "torch.fx.graph._PyTreeCodeGen": "2.13.0",  # its pytree_info holds the specs of arguments
    "torch.fx.graph_module.GraphModule._code": "2.13.0",  # set by recompile; as are _CODE, specs
    "torch.fx.node.Node._erased": "2.13.0",  # set by Graph.erase_node
    "torch.distributed.distributed_c10d._get_default_store": "2.13.0",  # set, get, check
    "torch._export.serde.serialize.deserialize_scalar_type": "2.13.0",  # a number to a dtype
    "torch.export.pt2_archive._package._build_file_map": "2.13.0",  # reader, config, folder
    "torch.export.ExportedProgram._guards_code": "2.13.0",  # L['x'].size()[0] == 4, as text
    "torch.nn.Module._forward_pre_hooks": "2.13.0",  # by key; as is _with_kwargs
    "torch.Tensor._version": "2.13.0",  # counts writes in place
    "torch.autograd._get_sequence_nr": "2.13.0",  # the number of the next gradient function
    "torch.autograd.graph.Node._sequence_nr": "2.13.0",  # of a gradient function
    "torch._C._autograd._saved_tensors_hooks_is_enabled": "2.13.0",  # False: adding them raises
    "torch._C._autograd._top_saved_tensors_default_hooks": "2.13.0",  # a pair, or None
    "torch.export._tree_utils.reorder_kwargs": "2.13.0",  # in the order of a spec
    "torch.utils._pytree": "2.13.0",  # tree_flatten and kin, TreeSpec
    "torch.utils._python_dispatch._disable_current_modes": "2.13.0",  # a context manager
    "torch.storage.UntypedStorage._cdata": "2.13.0",  # the address of the storage object
    "torch._dynamo.exc.TorchDynamoException": "2.13.0",  # the base of what capturing raises
    "torch._inductor.aoti_compile_and_package": "2.13.0",  # a package of an exported program
    "torch._inductor.aoti_load_package": "2.13.0",  # what runs it
    "torch._inductor.compile_fx.compile_fx": "2.13.0",  # a backend of torch.compile
    "torch._inductor.config": "2.13.0",  # freezing, fx_graph_cache, post_grad_custom_post_pass
    "torch._inductor.custom_graph_pass.CustomGraphPass": "2.13.0",  # the base of such a pass
    "torch._inductor.fx_passes.mkldnn_fusion": "2.13.0",  # _qlinear_binary_can_be_inplace
    "torch._inductor.virtualized.V": "2.13.0",  # V.graph is the graph at work
    "torch._export.utils": "2.13.0",  # the module that taking programs apart is written in
    "torch._export.utils._materialize_cpp_cia_ops": "2.13.0",  # looks each composite operator up
    "torch.library._defs": "2.13.0",  # the names of operators that libraries define
    "torch.library._impls": "2.13.0",  # and of what they compute with
    "torch.onnx._internal._lazy_import.onnxscript_apis": "2.13.0",  # get_torchlib_ops: a list
    "torch.onnx._internal.exporter._schemas": "2.13.0",  # op_signature_from_function, of functions
}
"""Name and the release it was checked on."""

GUARDS = "_guards_fn"
"""The submodule that checks inputs in what ``ExportedProgram.module()`` gives."""

_QUOTED = "Guard failed: "
"""How the messages of its function begin."""

MAY_ADD_IN_PLACE = "_qlinear_binary_can_be_inplace"
"""In ``mkldnn_fusion``: whether a kernel may add into a tensor that it is given."""

__all__ = [
    "CHECKED",
    "GUARDS",
    "MAY_ADD_IN_PLACE",
    "FakeTensor",
    "FakeTensorMode",
    "OpOverload",
    "OpOverloadPacket",
    "PyTreeCodeGen",
    "codegen_of",
    "compiled_when_asked",
    "composites_looked_up_once",
    "default_store",
    "disable_current_modes",
    "forward_pre_hooks",
    "guard_texts",
    "index_at_rest",
    "is_erased",
    "is_saved_by_its_maker",
    "overload_name",
    "private",
    "pytree",
    "quantized_decomposed",
    "remove_forward_pre_hook",
    "reorder_kwargs",
    "saved_tensors_hooks",
    "saves_with_hooks",
    "schema_of",
    "set_codegen",
    "storage_address",
    "tracer_class",
    "translations_read_once",
    "version_of",
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


def default_store() -> Any:
    """Where processes that joined each other leave words by name.

    Raises:
        RuntimeError: this process has joined no others.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError("no process group is initialized")
    return dist.distributed_c10d._get_default_store()


@contextmanager
def composites_looked_up_once() -> Iterator[None]:
    """Have torch look its composite operators up once while this lasts, and not 200 times.

    Taking a program apart, as every lowering does several times, looks all of them up for each
    namespace of operators: half a second in which nothing changes. They are looked up again when
    an operator can have come: with a module, or by `torch.library`. Each is then given twenty
    kernels by a function that puts the same type together for its signature; `typing` keeps it.
    """
    utils = private("torch._export.utils")
    before = utils._materialize_cpp_cia_ops
    known: tuple[int, ...] = ()

    def once() -> None:
        nonlocal known
        library = torch.library
        found = tuple(map(len, (sys.modules, library._defs, library._impls)))
        if found != known:
            before()
            known = found

    with (
        replaced(utils, _materialize_cpp_cia_ops=once),
        replaced(private("torch._ops"), Callable=typing.Callable),
    ):
        yield


_CODE = ("_code", "_lineno_map", "_prologue_start")
"""What a compiled graph module holds of its code, beside its forward."""


class _CompiledWhenAsked:
    """Stands for the forward of a graph module, or for its code, until somebody wants it."""

    def __init__(self, name: str, compiled: Callable[[GraphModule], Any]) -> None:
        self._name, self._compiled = name, compiled

    def __get__(self, module: GraphModule | None, owner: type) -> Any:
        if module is None:
            return self
        self._compiled(module)
        return getattr(module, self._name)


@contextmanager
def compiled_when_asked() -> Iterator[None]:
    """Have graphs that this thread changes write and compile their code when it is asked for.

    Lowering a program makes and changes some two hundred graphs, and runs a tenth of them. Each has
    a class of its own, whose forward stands aside until it is wanted: a call, a look at its
    signature or at the code.
    """
    before, thread = GraphModule.recompile, get_ident()

    def later(module: GraphModule) -> Any:
        if get_ident() != thread:
            return before(module)
        if isinstance(module.graph._codegen, PyTreeCodeGen):
            specs = module.graph._codegen.pytree_info
            module._in_spec, module._out_spec = specs.in_spec, specs.out_spec
        for name in _CODE:
            vars(module).pop(name, None)
        for name in ("forward", *_CODE):
            setattr(type(module), name, _CompiledWhenAsked(name, before))
        module._recompile_submodules()
        return None

    with replaced(GraphModule, recompile=later):
        yield


@contextmanager
def translations_read_once() -> Iterator[None]:
    """Have torch.onnx read its translations once in a process, and not once per file.

    Each reading parses the source of 500 functions: half of the time that a small file takes. What
    these take and give is worked out once, too.
    """
    apis = private("torch.onnx._internal._lazy_import.onnxscript_apis")
    schemas = private("torch.onnx._internal.exporter._schemas")
    with (
        replaced(apis, get_torchlib_ops=lambda: list(_translations(apis))),
        replaced(schemas, op_signature_from_function=_signatures(schemas)),
    ):
        yield


@functools.cache
def _signatures(schemas: Any) -> Any:
    return functools.lru_cache(4096)(schemas.op_signature_from_function)


@functools.cache
def _translations(apis: Any) -> tuple[Any, ...]:
    return tuple(type(apis).__getattr__(apis, "get_torchlib_ops")())


def is_erased(node: Node) -> bool:
    """Whether a node was taken out of its graph."""
    return bool(node._erased)


def storage_address(tensor: Tensor) -> int:
    """A number that two tensors have in common while they live exactly if they share storage.

    Args:
        tensor: strided, with a storage; a fake one has one too.
    """
    return int(tensor.untyped_storage()._cdata)


_INDEX = "_find_nodes_lookup_table"


@contextmanager
def index_at_rest(graph: Graph) -> Iterator[None]:
    """While code is written for a graph, each node is told twice how to write itself.

    A node that is told anything takes itself out of the graph's index of operators and targets and
    puts itself back; without the index it need not.
    """
    index = graph.__dict__.pop(_INDEX, None)
    try:
        yield
    finally:
        if index is not None:
            setattr(graph, _INDEX, index)


def forward_pre_hooks(module: nn.Module) -> dict[int, Any]:
    """The hooks that run before a module's forward, by key."""
    return dict(module._forward_pre_hooks)


def remove_forward_pre_hook(module: nn.Module, key: int) -> None:
    """Remove a hook that runs before a module's forward.

    Args:
        module: its owner.
        key: from `forward_pre_hooks`.
    """
    del module._forward_pre_hooks[key]
    module._forward_pre_hooks_with_kwargs.pop(key, None)


def version_of(tensor: Tensor) -> int | None:
    """How often a tensor was written in place; None in inference mode, which keeps no count.

    Args:
        tensor: views of one tensor share the count.
    """
    return None if tensor.is_inference() else int(tensor._version)


def saves_with_hooks() -> bool:
    """Whether hooks for what autograd saves may be added here."""
    autograd: Any = torch._C._autograd
    return bool(autograd._saved_tensors_hooks_is_enabled())


def saved_tensors_hooks() -> Any:
    """The hooks for what autograd saves that were added last, as a pair; None if there are none."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False)


def is_saved_by_its_maker(tensor: Tensor, kind: str) -> bool:
    """Whether the operator that made a tensor is the one that saves it at this moment.

    A gradient function is numbered when it is made, which is before it saves anything: who saves
    now is the last that was numbered.

    Args:
        tensor: what a hook for saved tensors is given.
        kind: the name of its gradient function, such as ``ReluBackward0``.
    """
    made_by = tensor.grad_fn
    if made_by is None or made_by.name() != kind:
        return False
    autograd: Any = torch.autograd
    return bool(made_by._sequence_nr() == autograd._get_sequence_nr() - 1)


def guard_texts(model: object) -> list[str]:
    """What export found out of the sizes of inputs, as expressions of Python.

    Args:
        model: an exported program, or its ``.module()``, whose function of guards quotes each.
    """
    own = getattr(model, "_guards_code", None)
    if own is not None:
        return [re.sub(r"\bL\['(\w+)'\]", r"\1", text) for text in own]
    function = getattr(getattr(model, GUARDS, None), "forward", None)
    return [t.removeprefix(_QUOTED) for t in _strings(function) if t.startswith(_QUOTED)]


def _strings(function: Any) -> Iterator[str]:
    """The literal strings of a function and of those that it wraps."""
    for cell in getattr(function, "__closure__", None) or ():
        yield from _strings(cell.cell_contents)
    code = getattr(function, "__code__", None)
    yield from (c for c in getattr(code, "co_consts", ()) if isinstance(c, str))


def private(name: str) -> Any:
    """What a row of `CHECKED` names, loaded at the first call: Inductor takes a second.

    Args:
        name: as in `CHECKED`.

    Raises:
        KeyError: it is not in there.
    """
    if name not in CHECKED:
        raise KeyError(f"{name} is not in CHECKED; try it on the torch in use and enter it there")
    return pkgutil.resolve_name(name)
