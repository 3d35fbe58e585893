"""Compile a converted model with TorchInductor: oneDNN's int8 kernels on x86.

`compile` gives a callable in this process, `package` a file for ahead-of-time use. Both work on a
copy of the converted module, with parameter freezing on while they compile and at no other time,
and with one correction: Inductor fuses ``linear(x) + y`` into a kernel that adds into the memory
of ``y``, which is wrong where ``y`` is the caller's tensor or a parameter. `fusion_report` says
which operators became int8 kernels, and why the others did not.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.export import ExportedProgram
from torch.export._tree_utils import reorder_kwargs
from torch.fx import Graph, GraphModule
from torch.utils import _pytree as pytree

from pt2q.deploy.export import require_graph
from pt2q.deploy.inductor import package_inputs
from pt2q.deploy.inductor.fusion import FusionReport, KernelCall, kernel_calls, report_fusion
from pt2q.deploy.inductor.graph import for_inductor
from pt2q.deploy.library_output import quiet_python
from pt2q.errors import DataError, FlowError, InputShapeError, LoweringError
from pt2q.files import SaveError, ensure_writable
from pt2q.ir.module import InputCheck, QuantGraphModule

CACHE_TAG = "pt2q"
"""Keeps what is compiled here apart, in Inductor's caches, from what is compiled without us."""

_compiling = threading.RLock()


# ------------------------------------------------------------------ in this process


class CompiledModel:
    """A converted model behind TorchInductor, called like the model itself.

    The first call with a new set of input shapes compiles. Calls run without autograd, leave
    their inputs as they are, and change no global setting once they return.
    """

    def __init__(self, model: GraphModule, *, dynamic: bool | None = None) -> None:
        require_graph(model)
        self.source = model
        self.model = for_inductor(model)
        self.calls: tuple[KernelCall, ...] = ()
        self._checks = _take_input_checks(self.model)
        self._in_scope = False
        self._out_of_scope = True
        self._run: Callable[..., Any] = torch.compile(
            self.model, backend=self._backend, fullgraph=True, dynamic=dynamic
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model, compiling first if need be.

        Raises:
            InputShapeError: a size that was exported as a constant differs.
            LoweringError: Inductor could not compile the model.
        """
        for check in self._checks:
            check(self.model, args, kwargs)
        if not self._out_of_scope:
            with torch.no_grad():
                try:
                    return self._run(*args, **kwargs)
                except Exception:
                    if not self._out_of_scope:
                        raise
        return self._compile_and_run(args, kwargs)

    def _compile_and_run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        with _compiling, inductor_settings(), quiet_python():
            self._in_scope = True
            try:
                result = self._run(*args, **kwargs)
            except torch._dynamo.exc.TorchDynamoException as error:
                raise LoweringError(f"Inductor could not compile: {_brief(error)}") from error
            finally:
                self._in_scope = False
        self._out_of_scope = False
        return result

    def _backend(self, graph: GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        """Compile one graph; a call outside the settings comes back through `__call__`."""
        if not self._in_scope:
            self._out_of_scope = True
            raise RuntimeError("this shape is compiled with the settings of pt2q")
        with _watched(self._record):
            compiled: Any = torch._inductor.compile_fx.compile_fx(graph, inputs)
        return compiled  # type: ignore[no-any-return]

    def _record(self, graph: Graph) -> None:
        self.calls = kernel_calls(graph)

    @property
    def fusion(self) -> FusionReport:
        """Which quantized operators run as oneDNN int8 kernels in the graph compiled last.

        Raises:
            FlowError: nothing is compiled yet.
        """
        if self._out_of_scope:
            raise FlowError("the model is compiled by its first call: call it, then ask")
        return report_fusion(self.model, self.calls)


def compile(model: GraphModule, *, dynamic: bool | None = None) -> CompiledModel:
    """Compile a converted model with Inductor, its parameters frozen.

    Args:
        model: what `pt2q.convert_pt2e` gave. It is not changed, and neither is any setting of
            torch once a call returns.
        dynamic: as for ``torch.compile``; sizes that were exported as constants stay constant.

    Returns:
        A callable; its first call compiles, which takes from seconds to a minute.

    Raises:
        NotExportedError, FlowError: the model has no graph, or is prepared and not converted.
        LoweringError: the model computes in a type that Inductor has no fast kernel for.
    """
    return CompiledModel(model, dynamic=dynamic)


@contextmanager
def inductor_settings() -> Iterator[None]:
    """What Inductor needs while it compiles a quantized model; nothing of it outlives the block.

    Freezing is what lets it pack int8 weights, and works without autograd only.
    """
    from torch._inductor import compile_fx, config
    from torch._inductor.fx_passes import mkldnn_fusion

    assert compile_fx is not None
    original = getattr(mkldnn_fusion, "_qlinear_binary_can_be_inplace", None)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(_patched(config, freezing=True))
        stack.enter_context(_patched(torch.compiler.config, cache_key_tag=CACHE_TAG))
        if original is not None:  # a torch without oneDNN fuses nothing
            guarded = _writes_temporaries_only(original)
            stack.enter_context(
                mock.patch.object(mkldnn_fusion, "_qlinear_binary_can_be_inplace", guarded)
            )
        yield


def _patched(config: Any, **values: Any) -> AbstractContextManager[Any]:
    """Settings of a config module of torch, for the length of a block."""
    context: AbstractContextManager[Any] = config.patch(**values)
    return context


def _writes_temporaries_only(original: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Inductor's own test of whether a kernel may add into a tensor, made safe.

    It forgets that the tensor may be an input of the graph or a frozen parameter: the kernel would
    overwrite the caller's memory, and the next call would start from the sum.
    """

    def may_write(other: Any) -> bool:
        from torch._inductor.virtualized import V

        name = other.get_name()
        foreign = name in V.graph.graph_inputs or name in V.graph.constants
        return not foreign and bool(original(other))

    return may_write


@contextmanager
def _watched(record: Callable[[Graph], None]) -> Iterator[None]:
    """Show Inductor's graph, all fusions made, before code is generated from it."""
    from torch._inductor import config
    from torch._inductor.custom_graph_pass import CustomGraphPass

    class Watch(CustomGraphPass):
        def __call__(self, graph: Graph) -> None:
            record(graph)

        def uuid(self) -> str:
            return CACHE_TAG

    with _patched(config, post_grad_custom_post_pass=Watch()):
        yield


def _take_input_checks(model: QuantGraphModule) -> tuple[InputCheck, ...]:
    """Shape checks run before the compiled code: tracing them into it costs guards per call."""
    found = {k: h for k, h in model._forward_pre_hooks.items() if isinstance(h, InputCheck)}
    for key in found:
        del model._forward_pre_hooks[key]
        model._forward_pre_hooks_with_kwargs.pop(key, None)
    return tuple(found.values())


# ------------------------------------------------------------------ fusion


class _Seen(Exception):
    """Ends a compilation once the fused graph is known."""


def fusion_report(
    model: GraphModule | CompiledModel,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
) -> FusionReport:
    """Say which quantized operators Inductor fuses into int8 kernels, and why not the others.

    Args:
        model: a converted model (its graph is fused but no code is generated, which takes
            seconds), or what `compile` gave, after a call.
        args, kwargs: example inputs for a converted model.

    Raises:
        LoweringError: Inductor could not process the model.
    """
    if isinstance(model, CompiledModel):
        return model.fusion
    require_graph(model)
    prepared = for_inductor(model)
    _take_input_checks(prepared)
    calls: list[KernelCall] = []

    def record(graph: Graph) -> None:
        calls.extend(kernel_calls(graph))
        raise _Seen

    def backend(graph: GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        with _watched(record):
            # Any: the compilation never comes to its end.
            unreached: Any = torch._inductor.compile_fx.compile_fx(graph, inputs)
        return unreached  # type: ignore[no-any-return]

    run = torch.compile(prepared, backend=backend, fullgraph=True)
    seen = False
    with _compiling, inductor_settings(), _uncached(), quiet_python():
        try:
            run(*args, **dict(kwargs or {}))
        except Exception as error:
            seen = _was_seen(error)
            if not seen:
                raise LoweringError(f"Inductor could not compile: {_brief(error)}") from error
    return report_fusion(prepared, tuple(calls))


@contextmanager
def _uncached() -> Iterator[None]:
    """A cached result would skip the passes to be watched."""
    from torch._inductor import config

    with _patched(config, fx_graph_cache=False):
        yield


def _was_seen(error: BaseException | None) -> bool:
    chain: set[int] = set()
    while error is not None and id(error) not in chain:
        chain.add(id(error))
        if isinstance(error, _Seen):
            return True
        error = getattr(error, "inner_exception", None) or error.__cause__ or error.__context__
    return False


# ------------------------------------------------------------------ ahead of time


def package(
    model: GraphModule | ExportedProgram,
    args: tuple[Any, ...],
    path: str | PathLike[str],
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
) -> Path:
    """Compile ahead of time into a package that runs without Python code of the model.

    Args:
        model: what `pt2q.convert_pt2e` gave.
        args, kwargs: example inputs. The package reads memory in the order that they have; calls
            with another are copied.
        path: the file to write, ending in ``.pt2``; written whole or not at all.
        dynamic_shapes: as for ``torch.export.export``.

    Returns:
        The path written.

    Raises:
        LoweringError: the model cannot be exported or compiled.
        SaveError: the file cannot be written there.
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise SaveError(f"a package is a .pt2 file: write {path.with_suffix('.pt2')}, not {path}")
    require_graph(model)
    ensure_writable(path)
    args, kwargs = pytree.tree_map(package_inputs.dense, (tuple(args), dict(kwargs or {})))
    program = _exported(model, args, kwargs, dynamic_shapes)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=".pt2", dir=path.parent)
    os.close(handle)
    try:
        with _compiling, inductor_settings(), quiet_python():
            _aot_compile(program, temporary)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    return path


def _exported(
    model: GraphModule | ExportedProgram,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None,
    dynamic_shapes: Any,
) -> ExportedProgram:
    if isinstance(model, ExportedProgram):
        model = model.module(check_guards=False)
    try:
        with quiet_python(), torch.no_grad():
            return torch.export.export(
                for_inductor(model), tuple(args), dict(kwargs or {}), dynamic_shapes=dynamic_shapes
            )
    except LoweringError:
        raise
    except Exception as error:
        raise LoweringError(
            f"torch.export could not capture the model with the given inputs: {_brief(error)}"
        ) from error


def _aot_compile(program: ExportedProgram, path: str) -> None:
    try:
        torch._inductor.aoti_compile_and_package(
            program,
            package_path=path,
            inductor_configs={
                "freezing": True,
                "aot_inductor.metadata": {package_inputs.KEY: package_inputs.described(program)},
            },
        )
    except Exception as error:
        raise LoweringError(f"Inductor could not compile: {_brief(error)}") from error


class LoadedPackage:
    """A package in this process, called like the model it was made from."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise DataError(f"cannot read {path}: no such file")
        try:
            with quiet_python():
                self._run: Any = torch._inductor.aoti_load_package(str(path))
        except Exception as error:
            raise DataError(
                f"{path} is no complete Inductor package: {_brief(error)}. Write it again with "
                "pt2q.deploy.inductor.package()"
            ) from error

        # By torch alone, without what this module writes, a package has no account of its inputs.
        self.inputs = package_inputs.read(self._run.get_metadata())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the packaged model.

        Raises:
            InputShapeError: the number, type or shape of the inputs is not what was compiled.
        """
        with torch.no_grad():
            if self.inputs is None:
                return self._run(*args, **kwargs)
            return self._checked(self.inputs, args, kwargs)

    def _checked(
        self,
        inputs: tuple[package_inputs.PackageInput, ...],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        expected = pytree.treespec_loads(self._run.loader.get_call_spec()[0])
        try:
            ordered = (args, reorder_kwargs(dict(kwargs), expected))
        except (ValueError, KeyError) as error:
            raise InputShapeError(f"the package takes other keyword inputs: {error}") from error
        given, found = pytree.tree_flatten(ordered)
        if found != expected:
            names = ", ".join(item.name for item in inputs)
            raise InputShapeError(
                f"the package takes {len(inputs)} input(s), nested as exported ({names}); "
                f"got {len(given)}"
            )
        seen: dict[str, int] = {}
        fitted = [item.fitted(x, seen) for item, x in zip(inputs, given, strict=True)]
        args, kwargs = pytree.tree_unflatten(fitted, found)
        result = self._run(*args, **kwargs)
        for item, x, used in zip(inputs, given, fitted, strict=True):
            if item.written and used is not x:
                x.copy_(used)
        return result


def load_package(path: str | PathLike[str]) -> LoadedPackage:
    """Load what `package` wrote.

    Args:
        path: the file. It holds machine code: load only what you trust.

    Raises:
        DataError: the file is missing or no package.
    """
    return LoadedPackage(Path(path))


def _brief(error: BaseException) -> str:
    inner = getattr(error, "inner_exception", None) or error
    lines = [line.strip() for line in str(inner).splitlines() if line.strip()]
    return f"{type(inner).__name__}: {lines[0] if lines else 'no message'}"
