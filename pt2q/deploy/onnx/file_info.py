"""What `export` says of the file that it wrote."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class OnnxProgramInfo:
    """What was written.

    Attributes:
        path: the model file.
        opset: the version of ONNX's operators.
        operators: (operator, count), most frequent first.
        size: bytes of the model file and its data file.
        constants: (type, bytes) of what the file stores, largest first.
        data: the file beside it that holds the constants, or None.
    """

    path: Path
    opset: int
    operators: tuple[tuple[str, int], ...]
    size: int
    constants: tuple[tuple[str, int], ...]
    data: Path | None = None

    @classmethod
    def of(cls, model: Any, path: Path, opset: int, data: Path | None) -> OnnxProgramInfo:
        """Describe what was written.

        Args:
            model: the ``onnx_ir.Model``.
            path, opset, data: as the attributes.
        """
        operators = Counter(node.op_type for node in model.graph)
        size = sum(file.stat().st_size for file in (path, data) if file is not None)
        stored = stored_bytes(model).most_common()
        return cls(path, opset, tuple(operators.most_common()), size, tuple(stored), data)

    def count(self, operator: str) -> int:
        """How often the graph calls an operator, 0 if it does not."""
        return dict(self.operators).get(operator, 0)

    def __str__(self) -> str:
        """A few lines for a terminal."""
        stored = ", ".join(f"{kind} {_bytes(size)}" for kind, size in self.constants)
        calls = ", ".join(f"{count} {name}" for name, count in self.operators)
        constants = f" ({stored})" if stored else ""
        return f"{self.path}: opset {self.opset}, {_bytes(self.size)}{constants}\n  {calls}"


def _bytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB" if size >= 1e5 else f"{size / 1e3:.2f} kB"


def stored_bytes(model: Any) -> Counter[str]:
    """The bytes of a model's constants by their type.

    Args:
        model: an ``onnx_ir.Model``.
    """
    found = Counter[str]()
    for value in model.graph.initializers.values():
        found[str(value.dtype).lower()] += value.const_value.nbytes
    return found
