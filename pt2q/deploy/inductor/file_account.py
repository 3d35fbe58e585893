"""What a compiled package is; its machine code is not loaded."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from pt2q.deploy.finished_file import FinishedFile, Method, Slot
from pt2q.deploy.inductor import package_account
from pt2q.deploy.inductor.package_inputs import PackageInput, Size
from pt2q.deploy.provenance import read_provenance
from pt2q.errors import DataError

_KINDS = {".so": "code, with constants", ".cpp": "source text", ".json": "metadata"}


def describe(path: Path) -> FinishedFile:
    """Read what a package is.

    Args:
        path: the file.

    Raises:
        DataError: it is damaged.
    """
    metadata: dict[str, str] = {}
    sizes: dict[str, int] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for item in archive.infolist():
                if item.filename.endswith("_metadata.json"):
                    metadata.update(json.loads(archive.read(item)))
                kind = _KINDS.get(Path(item.filename).suffix, "other")
                sizes[kind] = sizes.get(kind, 0) + item.file_size
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise DataError(f"{path}: truncated or damaged: {error}") from error
    sizes["other"] = sizes.get("other", 0) + path.stat().st_size - sum(sizes.values())
    machine = " ".join(filter(None, (metadata.get("AOTI_MACHINE"), metadata.get("AOTI_CPU_ISA"))))
    inputs = tuple(map(_slot, package_account.read(metadata) or ()))
    return FinishedFile(
        str(path),
        f"package of Inductor, compiled for {machine or 'an unknown machine'}",
        (Method("", inputs, (), (("compiled", 1),)),),
        tuple(sorted(sizes.items(), key=lambda item: -item[1])),
        read_provenance(metadata),
    )


def _slot(item: PackageInput) -> Slot:
    if not item.dtype:
        return Slot(item.name, f"the constant {item.value}", None)
    return Slot(item.name, item.dtype, tuple(map(_size_text, item.sizes)))


def _size_text(size: Size) -> str:
    if size is None:
        return "computed"
    if isinstance(size, int):
        return str(size)
    name, least, most = size
    return f"{name}: {least} to {most}" if most is not None else f"{name}: {least} or more"
