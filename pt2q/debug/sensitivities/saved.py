"""What was measured already, in a file, so that an interrupted run goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pt2q.debug.sensitivities.judging import Tally
from pt2q.errors import DataError
from pt2q.files import write_bytes
from pt2q.ir.graph import dump
from pt2q.ir.module import QuantGraphModule
from pt2q.ir.torch_private import pytree

Pair = tuple[Tally, Tally]
"""A row's sums alone, and without."""


def fingerprint(model: QuantGraphModule, batches: Sequence[Any], judge: str) -> str:
    """Of all that figures depend on.

    Args:
        model: prepared; its tensors and what its observers have seen count.
        batches: the data.
        judge: what is measured.
    """
    digest = hashlib.sha256(f"{judge}\n{dump(model)}".encode())
    tensors = [*model.state_dict().items(), *enumerate(pytree.tree_leaves(list(batches)))]
    for name, value in tensors:
        digest.update(f"{name}".encode())
        digest.update(_bytes(value))
    return digest.hexdigest()


def _bytes(value: Any) -> bytes:
    if not isinstance(value, Tensor):
        return repr(value).encode()
    flat = value.detach().cpu().contiguous().reshape(-1)
    kind = f"{value.dtype}{tuple(value.shape)}".encode()
    return kind + (flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")


class Saved:
    """Sums by stage and row, written after each.

    Args:
        path: the file; None keeps nothing.
        key: of what is measured, see `fingerprint`.

    Raises:
        DataError: the file is of another measurement, or no such file at all.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        self.path = path
        self.key = key
        self.found: dict[str, Pair] = {}
        if path is not None and path.exists():
            self.found = _read(path, key)

    def get(self, stage: str, row: str) -> Pair | None:
        """What is known of a row, or None."""
        return self.found.get(f"{stage}/{row}")

    def put(self, stage: str, row: str, pair: Pair) -> None:
        """Keep what was measured."""
        self.found[f"{stage}/{row}"] = pair
        if self.path is not None:
            text = json.dumps({"measurement": self.key, "rows": self.found})
            write_bytes(self.path, text.encode())


def _read(path: Path, key: str) -> dict[str, Pair]:
    try:
        content = json.loads(path.read_text())
        known, rows = content["measurement"], content["rows"]
        found = {name: (_tally(one), _tally(other)) for name, (one, other) in rows.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: no saved measurement; give another file, or remove it") from error
    if known != key:
        raise DataError(
            f"{path}: it was measured with another model, other data or another measure; give "
            "another file, or remove it"
        )
    return found


def _tally(pairs: Any) -> Tally:
    return tuple((float(a), float(b)) for a, b in pairs)
