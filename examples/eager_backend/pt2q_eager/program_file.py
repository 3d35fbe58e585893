"""The file: a line that names the format, then the program as `torch.export.save` writes it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from pt2q.errors import DataError
from pt2q.files import write_bytes

HEADER = b"pt2q-eager 1\n"


def save(program: ExportedProgram, path: Path) -> Path:
    """Write a program, whole or not at all."""
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return write_bytes(path, HEADER + buffer.getvalue())


def load(path: Path) -> Any:
    """A module that runs what `save` wrote.

    Raises:
        DataError: the file is something else.
    """
    content = path.read_bytes()
    if not content.startswith(HEADER):
        raise DataError(f"{path} is no program of the eager backend")
    return torch.export.load(io.BytesIO(content[len(HEADER) :])).module()
