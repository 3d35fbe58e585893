"""An exported program whose weights stay in its file."""

from __future__ import annotations

import os
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.export import ExportedProgram

from pt2q.ir.storage.mapped import MappedFile, let_go_of
from pt2q.ir.torch_private import private

_LOADER = "torch.export.pt2_archive._package._build_file_map"


def mapped_program(path: str | os.PathLike[str]) -> ExportedProgram:
    """Load what ``torch.export.save`` wrote, its weights and constants mapped from the file.

    Args:
        path: the file. Check first that it is to be trusted, as before ``torch.export.load``.

    Returns:
        The program. Within `low_memory`, `release` lets go of what of it is in memory. Tensors on
        other devices are loaded as always.
    """
    mapped = MappedFile(path)
    load = private(_LOADER)

    def build(reader: Any, config: Any, folder: str) -> dict[str, Tensor]:
        return _mapped(mapped, load, reader, config, folder)

    with patch(_LOADER, build):
        program = torch.export.load(path)
    let_go_of(mapped)
    return program


def _mapped(
    mapped: MappedFile, load: Any, reader: Any, config: Any, folder: str
) -> dict[str, Tensor]:
    """Flat tensors by file, as torch's own function gives them."""
    found: dict[str, Tensor] = {}
    rest = {}
    for name, entry in config.config.items():
        record = os.path.join(folder, entry.path_name)
        tensor = None if entry.use_pickle else _tensor(mapped, reader.archive_file, record, entry)
        if tensor is None:
            rest[name] = entry
        else:
            found[entry.path_name] = tensor
    return {**found, **load(reader, type(config)(config=rest), folder)}


def _tensor(mapped: MappedFile, archive: Any, record: str, entry: Any) -> Tensor | None:
    size, start = archive.get_record_size(record), archive.get_record_offset(record)
    dtype = private("torch._export.serde.serialize.deserialize_scalar_type")(
        entry.tensor_meta.dtype
    )
    fits = size > 0 and start % dtype.itemsize == 0
    if not fits or entry.tensor_meta.device.type != "cpu":
        return None
    tensor = mapped.tensor(dtype, size // dtype.itemsize, start)
    return tensor.requires_grad_(bool(entry.tensor_meta.requires_grad))
