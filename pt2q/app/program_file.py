"""A saved model, looked into before it is loaded."""

from __future__ import annotations

import os
import zipfile
from os import PathLike
from pathlib import Path

import torch
from torch.export import ExportedProgram

from pt2q.app.archive import check_archive
from pt2q.app.trust import TRUSTED
from pt2q.deploy.describing import room_of
from pt2q.errors import DataError
from pt2q.ir.mapped_program import mapped_program
from pt2q.ir.storage import is_low
from pt2q.library_output import first_line, quiet_python

_FINISHED = {"executorch": "a finished ExecuTorch program", "onnx": "an ONNX file"}


def read_program(path: str | PathLike[str]) -> ExportedProgram:
    """Load what `torch.export.save` wrote.

    Raises:
        DataError: the file is missing, truncated or something else.
        UntrustedFileError: loading it could run code, and `TRUSTED` is not set.
    """
    path = Path(path)
    if not os.path.isfile(path):
        what = "a folder, not a file" if os.path.isdir(path) else "no such file"
        raise DataError(f"model {path}: {what}")
    if (room := room_of(path)) in _FINISHED:
        raise DataError(
            f"model {path}: {_FINISHED[room]}, not an exported program: give the float program "
            f"that it was made from; pt2q inspect {path} says what it is"
        )
    if not zipfile.is_zipfile(path):
        raise DataError(
            f"model {path}: truncated, or not written by torch.export.save "
            f"({path.stat().st_size} bytes)"
        )
    check_archive(path, trusted=TRUSTED.get())
    try:
        with quiet_python():
            return mapped_program(path) if is_low() else torch.export.load(path)
    except Exception as error:
        raise DataError(f"model {path}: torch.export.load failed: {first_line(error)}") from error
