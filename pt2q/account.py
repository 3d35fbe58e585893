"""What a result offers besides its own fields: text and JSON."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from typing import Any


class Account(ABC):
    """A result that can be printed and stored."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists."""

    @abstractmethod
    def text(self, width: int | None = None) -> str:
        """What a reader is told."""

    def to_json(self, indent: int | None = 2) -> str:
        """`to_dict` as JSON text.

        Args:
            indent: spaces for each level; None writes one line.
        """
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def __str__(self) -> str:
        return self.text()
