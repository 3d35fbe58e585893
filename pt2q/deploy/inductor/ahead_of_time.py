"""A converted model compiled into a file, and the file in use."""

from __future__ import annotations

import io
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule

from pt2q.deploy.agreement import Call, check_agreement
from pt2q.deploy.export import export_rewritten, require_graph
from pt2q.deploy.given_tensors import why_no_memory
from pt2q.deploy.inductor import package_account, package_inputs
from pt2q.deploy.inductor.graph import for_inductor
from pt2q.deploy.inductor.settings import aoti_compile_and_package, aoti_load_package, compiling
from pt2q.deploy.provenance import KEY as PROVENANCE
from pt2q.deploy.provenance import provenance_text, read_provenance
from pt2q.errors import DataError, InputShapeError, LoweringError, SaveError
from pt2q.files import ensure_writable, replacing
from pt2q.ir.torch_private import pytree, reorder_kwargs
from pt2q.library_output import first_line, quiet_python


def package(
    model: GraphModule | ExportedProgram,
    args: tuple[Any, ...],
    path: str | PathLike[str],
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    check: bool = True,
) -> Path:
    """Compile ahead of time into a package that runs without Python code of the model.

    Args:
        model: what `pt2q.convert_pt2e` gave.
        args, kwargs: example inputs. The package reads memory in the order that they have; calls
            with another are copied.
        path: the file to write, ending in ``.pt2``; written whole or not at all.
        dynamic_shapes: as for ``torch.export.export``.
        check: run the package and compare it with a converted model on the example inputs before
            it is put in place.

    Returns:
        The path written.

    Raises:
        LoweringError: the model cannot be exported or compiled.
        DisagreementError: the package does not compute what the converted model does.
        SaveError: the file cannot be written there.
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise SaveError(f"a package is a .pt2 file: write {path.with_suffix('.pt2')}, not {path}")
    require_graph(model)
    ensure_writable(path)
    args, kwargs = pytree.tree_map(package_inputs.dense, (tuple(args), dict(kwargs or {})))
    program = export_rewritten(model, for_inductor, args, kwargs, dynamic_shapes)
    with compiling():
        content = _compiled(program, provenance_text(model))
    with replacing(path) as draft:
        draft.write_bytes(content)
        if check:
            call = Call.of(model, args, kwargs)
            check_agreement(model, call, lambda call: _run(draft, call), "Inductor")
    return path


def _compiled(program: ExportedProgram, origin: str | None) -> bytes:
    """The package. torch ends the process where it cannot write a file, so it writes to memory."""
    metadata = {package_account.KEY: package_account.described(program)}
    if origin is not None:
        metadata[PROVENANCE] = origin
    content = io.BytesIO()
    try:
        aoti_compile_and_package(
            program,
            package_path=content,
            inductor_configs={
                "freezing": True,
                "aot_inductor.metadata": metadata,
            },
        )
    except Exception as error:
        raise LoweringError(f"Inductor could not compile: {first_line(error)}") from error
    return content.getvalue()


def _run(path: Path, call: Call) -> list[Any]:
    args, kwargs = call.own()
    found: list[Any] = pytree.tree_leaves(load_package(path)(*args, **kwargs))
    return found


class LoadedPackage:
    """A package in this process, called like the model it was made from."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise DataError(f"cannot read {path}: no such file")
        try:
            with quiet_python():
                self._run: Any = aoti_load_package(str(path))
        except Exception as error:
            raise DataError(
                f"{path} is no complete Inductor package: {first_line(error)}. Write it again with "
                "pt2q.deploy.inductor.package()"
            ) from error

        # By torch alone, without what this module writes, a package has no account of its inputs.
        metadata = self._run.get_metadata()
        self.inputs = package_account.read(metadata)
        self.provenance = read_provenance(metadata)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the packaged model.

        Raises:
            InputShapeError: the number, type or shape of the inputs is not what was compiled.
        """
        with torch.no_grad():
            if self.inputs is None:
                _refuse_without_memory((args, kwargs))
                return self._run(*args, **kwargs)
            return self._checked(self.inputs, args, kwargs)

    def _checked(
        self,
        inputs: tuple[package_inputs.PackageInput, ...],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        given, spec = self._flat(inputs, args, kwargs)
        seen: dict[str, int] = {}
        fitted = [item.fitted(x, seen) for item, x in zip(inputs, given, strict=True)]
        args, kwargs = pytree.tree_unflatten(fitted, spec)
        result = self._run(*args, **kwargs)
        for item, x, used in zip(inputs, given, fitted, strict=True):
            if item.written and used is not x:
                x.copy_(used)
        return result

    def _flat(
        self,
        inputs: tuple[package_inputs.PackageInput, ...],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> tuple[list[Any], pytree.TreeSpec]:
        """The inputs in the order of the code, and how they nest."""
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
        return given, found


def _refuse_without_memory(given: Any) -> None:
    for place, x in enumerate(pytree.tree_leaves(given)):
        wrong = why_no_memory(x) if isinstance(x, torch.Tensor) else ""
        if wrong:
            raise InputShapeError(f"input {place} {wrong}")


def load_package(path: str | PathLike[str]) -> LoadedPackage:
    """Load what `package` wrote.

    Args:
        path: the file. It holds machine code: load only what you trust.

    Raises:
        DataError: the file is missing or no package.
    """
    return LoadedPackage(Path(path))
