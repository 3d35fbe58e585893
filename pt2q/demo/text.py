"""English text that every Python installation carries: its own documentation strings, as bytes."""

from __future__ import annotations

import ast
import sysconfig
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

_LEFT_OUT = {"test", "tests", "site-packages", "idlelib", "lib2to3", "turtledemo", "__pycache__"}
_HELD_OUT = 10
"""One module in so many is held out, by its name, so that it is the same in every release."""


@dataclass(frozen=True)
class Text:
    """Bytes, (n,) int64; nothing held out was trained on."""

    train: Tensor
    held_out: Tensor


@lru_cache(maxsize=1)
def load_text() -> Text:
    """The documentation strings of the standard library, module by module."""
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    for name, text in _modules(Path(sysconfig.get_paths()["stdlib"])):
        parts[zlib.crc32(name.encode()) % _HELD_OUT == 0].append(text)
    train, held_out = (torch.tensor(list(b"".join(part))) for part in parts)
    return Text(train, held_out)


def _modules(root: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(root.rglob("*.py")):
        place = path.relative_to(root)
        if _LEFT_OUT.isdisjoint(place.parts):
            strings = list(_docstrings(path.read_bytes()))
            yield place.as_posix(), b"".join(f"{text}\n\n".encode() for text in strings)


def _docstrings(source: bytes) -> Iterator[str]:
    try:
        tree = ast.parse(source)
    except SyntaxError:  # a file that shows what is no Python
        return
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(tree):
        if isinstance(node, documented) and (text := ast.get_docstring(node)):
            yield text


def windows(text: Tensor, length: int, count: int, seed: int = 0) -> Tensor:
    """Pieces of a text from places drawn at random.

    Args:
        text: (n,) bytes.
        length: of each piece.
        count: how many.
        seed: of the places.

    Returns:
        (count, length) int64.
    """
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(text) - length + 1, (count, 1), generator=generator)
    return text[starts + torch.arange(length)]
