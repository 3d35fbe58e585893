"""A converted model as an exported program in a `.pt2` file, which says where it comes from."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule

from pt2q.deploy.export import export_rewritten, require_graph
from pt2q.deploy.provenance import KEY, provenance_text, read_provenance
from pt2q.errors import DataError
from pt2q.files import ensure_writable, replacing
from pt2q.library_output import quiet_python


def save(
    model: GraphModule,
    args: tuple[Any, ...],
    path: str | PathLike[str],
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
) -> ExportedProgram:
    """Export a converted model, and write it as `torch.export.save` does.

    `torch.export.load` reads it once pt2q is imported, which registers the operators of quantized
    programs; `pt2q inspect` prints where it comes from. A file that is there stays as it is until
    the new one is whole.

    Args:
        model: what `convert_pt2e` gave.
        args, kwargs: example inputs.
        path: the ``.pt2`` file to write.
        dynamic_shapes: as for ``torch.export.export``.

    Returns:
        The program that was written.

    Raises:
        NotExportedError, FlowError: the model has no graph, or is prepared and not converted.
        LoweringError: it cannot be exported with these inputs.
        SaveError: the file cannot be written there.
    """
    require_graph(model)
    path = Path(path)
    ensure_writable(path)
    program = export_rewritten(model, lambda module: module, args, kwargs, dynamic_shapes)
    text = provenance_text(model)
    with replacing(path) as draft, quiet_python():
        torch.export.save(program, draft, extra_files={} if text is None else {KEY: text})
    return program


def provenance_in(path: str | PathLike[str]) -> dict[str, Any] | None:
    """Where a saved program comes from, by what stands beside it; nothing of it is loaded.

    Args:
        path: what `save` wrote, or `torch.export.save` did.

    Returns:
        None where it says nothing.

    Raises:
        DataError: it is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = [name for name in archive.namelist() if name.endswith(f"/extra/{KEY}")]
            return read_provenance({KEY: archive.read(found[0]).decode()} if found else {})
    except (zipfile.BadZipFile, OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: truncated or damaged: {error}") from error
