"""The float tensors that others have been put in the place of, while a model is prepared."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class FloatTensors:
    """Float tensors by where their successors are: the path of the graph module, and the name.

    What comes later goes on comparing with the float model; converting drops them.
    """

    kept: dict[tuple[str, str], Tensor]

    def tensors(self) -> list[Tensor]:
        """The tensors, in the order of their places."""
        return [self.kept[place] for place in sorted(self.kept)]
