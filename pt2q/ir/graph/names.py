"""Fresh names for what is added to a module."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass
class Names:
    """Fresh attribute names, drawn without probing.

    Args:
        taken: names already in use.
    """

    taken: set[str]
    _next: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, model: torch.nn.Module) -> Names:
        """All names of parameters, buffers and submodules of a module, dots as underscores too."""
        names = {""}
        waiting = [("", model)]
        while waiting:
            path, module = waiting.pop()
            names.update(path + name for name in (*module._parameters, *module._buffers))
            for name, child in module._modules.items():
                names.add(path + name)
                if child is not None:
                    waiting.append((f"{path}{name}.", child))
        return cls(names)

    def fresh(self, base: str) -> str:
        """``base`` if free, else ``base_1``, ``base_2``, ... Marks it as taken."""
        if base not in self.taken:
            self.taken.add(base)
            return base
        return self.numbered(base, start=1)

    def numbered(self, base: str, start: int = 0) -> str:
        """``base_N`` with the next free N, counted from where the last call stopped."""
        number = self._next.get(base, start)
        while f"{base}_{number}" in self.taken:
            number += 1
        self._next[base] = number + 1
        self.taken.add(f"{base}_{number}")
        return f"{base}_{number}"
