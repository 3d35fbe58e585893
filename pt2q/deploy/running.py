"""A finished file in the runtime that it is for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from pt2q.deploy import executorch, inductor, onnx
from pt2q.deploy.backend import Run
from pt2q.deploy.describing import describe, room_of
from pt2q.deploy.executorch import LoadedMethod
from pt2q.deploy.onnx.judging import OPENVINO, runs_in_openvino
from pt2q.deploy.onnx.openvino_session import OpenVinoSession
from pt2q.deploy.signature import Batch, Signature
from pt2q.errors import DataError
from pt2q.ir.torch_private import pytree


@dataclass(frozen=True)
class FileInUse:
    """A finished file, ready to run.

    Args:
        run: runs one batch; gives the results, flat.
        runtime: what it runs in, as people call it.
    """

    run: Run
    runtime: str


def open_file(
    path: str | PathLike[str],
    signature: Signature,
    runtime: str | None = None,
    method: str | None = None,
) -> FileInUse:
    """Open a finished file in its runtime.

    Args:
        path: a ``.pte``, an ``.onnx`` or a package of Inductor, whose machine code is loaded.
        signature: how the program is called that it was made from.
        runtime: ``"openvino"`` or ``"onnxruntime"`` runs an ``.onnx`` there; by default OpenVINO
            does where the file says that it is for it and it is installed, else ONNX Runtime.
        method: of a ``.pte`` of several; None for ``forward``.

    Raises:
        DataError: it is no such file, damaged, or has no such method.
        MissingDependencyError: the runtime is not installed.
    """
    path = Path(path)
    room = room_of(path)
    if room == "executorch":
        found = _method(path, method)
        return FileInUse(lambda batch: found(*signature.leaves(batch)), "ExecuTorch")
    if method is not None:
        raise DataError(f"{path} holds one program, without a name: leave {method}= out")
    if room == "onnx" and (runtime == "openvino" or (runtime is None and _is_for_openvino(path))):
        return FileInUse(_of_tensors(OpenVinoSession(path)), OPENVINO)
    if room == "onnx":
        return FileInUse(_of_tensors(onnx.load(path)), "ONNX Runtime")
    if room == "inductor":
        return FileInUse(_nested(inductor.load_package(path), signature), "Inductor")
    raise DataError(f"{path} is no finished .pte, .onnx or .pt2 package")


def _method(path: Path, name: str | None) -> LoadedMethod:
    program = executorch.load(path)
    known = program.method_names
    if (name or "forward") not in known:
        wanted = "it is not said which is meant" if name is None else f"none is called {name!r}"
        raise DataError(
            f"{path} has the methods {', '.join(known)}, and {wanted}: name the model as the "
            f"method that was made from it, such as {known[0]}=MODEL.pt2"
        )
    return program.method(name or "forward")


def _is_for_openvino(path: Path) -> bool:
    found = describe(path)
    said = None if found is None else found.provenance
    return runs_in_openvino((said or {}).get("statements", ()))


def _of_tensors(session: Callable[..., Any]) -> Run:
    return lambda batch: session(*batch)


def _nested(loaded: Callable[..., Any], signature: Signature) -> Run:
    def run(batch: Batch) -> list[Any]:
        args, kwargs = signature.call(batch)
        return list(pytree.tree_leaves(loaded(*args, **kwargs)))

    return run
