"""What a finished file is, in any format: how it is called, what runs, what takes its bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pt2q.account import Account
from pt2q.deploy.provenance import provenance_lines
from pt2q.tables import text_table


@dataclass(frozen=True)
class Slot:
    """An input or an output.

    Args:
        name: as exported; its place where the format keeps no name.
        dtype: such as ``float32``; the type of what is no tensor.
        sizes: what is accepted, dimension by dimension: ``8``, ``1 to 32``, ``up to 32``, or a
            name. None where the format does not say.
    """

    name: str
    dtype: str
    sizes: tuple[str, ...] | None

    def __str__(self) -> str:
        return self.dtype if self.sizes is None else f"{self.dtype}[{', '.join(self.sizes)}]"


@dataclass(frozen=True)
class Method:
    """One function of a file.

    Args:
        name: what it is called by.
        inputs, outputs: in the order of a call, flat.
        operators: (operator, count) of what its runtime runs itself, most frequent first.
        delegated: (what, count) of what is given to another library, or is another kernel.
        delegate: that library.
    """

    name: str
    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]
    operators: tuple[tuple[str, int], ...] = ()
    delegated: tuple[tuple[str, int], ...] = ()
    delegate: str = ""

    def rows(self) -> list[tuple[str, str]]:
        """(what, text) for a reader."""
        found = [(f"input {slot.name}", str(slot)) for slot in self.inputs]
        found += [(f"output {slot.name}", str(slot)) for slot in self.outputs]
        if self.delegate:
            found.append((f"in {self.delegate}", _counted(self.delegated)))
        return [*found, ("operators", _counted(self.operators))]


@dataclass(frozen=True)
class FinishedFile(Account):
    """What a finished file is.

    Args:
        path: the file.
        kind: its format, and what reads it.
        methods: its functions.
        sizes: (what, bytes), all of the file and of what stands beside it.
        provenance: where it comes from; None where the file says nothing.
    """

    path: str
    kind: str
    methods: tuple[Method, ...]
    sizes: tuple[tuple[str, int], ...]
    provenance: Mapping[str, Any] | None = None

    @property
    def size(self) -> int:
        """Bytes of all of it."""
        return sum(size for _, size in self.sizes)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists."""
        return {**asdict(self), "size": self.size, "sizes": dict(self.sizes)}

    def text(self, width: int | None = None) -> str:
        """What it is, how it is called, what it holds, and where it comes from.

        Args:
            width: columns of the terminal.
        """
        rows = [("file", self.kind)]
        for method in self.methods:
            if len(self.methods) > 1:
                rows.append(("method", method.name))
            rows += method.rows()
        rows.append(("size", bytes_text(self.size)))
        rows += [(f"  {what}", bytes_text(size)) for what, size in self.sizes if size]
        rows += provenance_lines(self.provenance)
        return text_table(("what", "of the file"), rows, width=width)


def _counted(rows: tuple[tuple[str, int], ...]) -> str:
    return ", ".join(f"{count} {name}" for name, count in rows) or "none"


def bytes_text(size: int) -> str:
    """Bytes in the unit that fits."""
    if size < 1000:
        return f"{size} bytes"
    return f"{size / 1e6:.2f} MB" if size >= 1e5 else f"{size / 1e3:.2f} kB"
