"""What a finished file computes beside the float program that it was made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor
from torch.export import ExportedProgram

from pt2q.app.compare_job import inputs_of
from pt2q.app.conversion import Track
from pt2q.app.figures import own
from pt2q.app.metrics import Measured, Metric, Recorded, measure
from pt2q.app.trust import TRUSTED
from pt2q.debug import RuntimeComparison, compare_in_runtime
from pt2q.deploy.backend import Values
from pt2q.deploy.describing import room_of
from pt2q.deploy.onnx.inner_values import InnerValues
from pt2q.deploy.running import FileInUse, open_file
from pt2q.deploy.signature import Batch, signature_of
from pt2q.errors import ComparisonError, UntrustedFileError
from pt2q.files import check_outputs


def check_file(file: Path, written: Mapping[str, Path | None]) -> None:
    """Refuse what cannot be asked for with a finished file.

    Args:
        file: to be compared.
        written: the files that the command writes, by the option.

    Raises:
        DataError: it is written by the command.
    """
    check_outputs(written, {"--file": file})


def compare_file(
    program: ExportedProgram,
    file: Path,
    batches: Sequence[Batch],
    track: Track,
    *,
    backend: str | None = None,
    inside: bool = False,
    method: str | None = None,
) -> RuntimeComparison:
    """Run a finished file and the float program on the same batches.

    Args:
        program: the float program.
        file: a ``.pte``, an ``.onnx`` or a package.
        batches: all of them are compared on.
        track: wraps a loop over batches to show its progress under a title.
        backend: the runtime's, where several read the file.
        inside: compare the values inside an ``.onnx``, not its results.
        method: the one that was made from the program, of a file of several.

    Raises:
        ComparisonError: the file gives another number of results than the program, or has no values
            inside that can be had.
        UntrustedFileError: it is a package, whose code would run, and `TRUSTED` is not set.
    """
    room = room_of(file)
    if room == "inductor" and not TRUSTED.get():
        raise UntrustedFileError(
            f"{file} is machine code, which comparing runs: pt2q runs it only where you say that "
            "you trust it, with pt2q --trust compare"
        )
    if inside and room != "onnx":
        raise ComparisonError(f"{file}: the values inside can be had of .onnx files alone")
    given = inputs_of(program, batches, track)
    if inside:
        return compare_in_runtime(program, InnerValues(file), given)
    opened = open_file(file, signature_of(program), backend, method)
    found = compare_in_runtime(program, _results(program, file, opened), given)
    return replace(found, what=f"results of {file.name} in {opened.runtime}")


def measure_file(
    metric: Metric | None,
    program: ExportedProgram,
    file: Path,
    batches: Sequence[Batch],
    *,
    backend: str | None = None,
    method: str | None = None,
) -> Measured | None:
    """Ask a metric of a float program and of a finished file.

    Args:
        metric: the function; None gives None.
        program, file, batches, backend, method: as for `compare_file`.
    """
    if metric is None:
        return None
    ran = Recorded(open_file(file, signature_of(program), backend, method).run, program)
    for batch in batches:
        ran(own(batch))
    return measure(metric, program, None, batches, ran.results)


def _results(program: ExportedProgram, file: Path, opened: FileInUse) -> Values:
    """The results of the file, by the nodes of the program that compute them."""
    names = program.graph_signature.user_outputs

    def run(*batch: Tensor) -> Mapping[str, Tensor]:
        found = list(opened.run(batch))
        if len(found) != len(names):
            raise ComparisonError(
                f"{file} gives {len(found)} results, the program {len(names)}: it was made from "
                "another program"
            )
        pairs = zip(names, found, strict=True)
        return {str(name): value for name, value in pairs if isinstance(value, Tensor)}

    return run
