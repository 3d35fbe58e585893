"""The values of one batch, as four runs of the models see and replace them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.fx import Node

from pt2q.debug.comparison.common_value import CommonValue
from pt2q.debug.comparison.places import place_tag
from pt2q.debug.error_sums import mismatch
from pt2q.debug.identity import Key
from pt2q.ir.torch_private import pytree


class BatchValues:
    """Takes in the values of one batch, run by run; each method is a visit of `GraphRunner`.

    Args:
        common: the values that both models have; their sums grow.
    """

    def __init__(self, common: Iterable[CommonValue]) -> None:
        self.here: dict[tuple[str, str], CommonValue] = {}
        self.there: dict[tuple[str, str], list[CommonValue]] = {}
        for value in common:
            self.here[place_tag(value.here)] = value
            self.there.setdefault(place_tag(value.there), []).append(value)
        self.values: dict[tuple[Key, int], Any] = {}
        self.references: dict[tuple[Key, int], Any] = {}

    def record(self, path: str, call: int, node: Node, args: Any, value: Any) -> Any:
        """Float, on its own values: keep them."""
        known = self.here.get((path, node.name))
        if known is not None:
            known.calls += 1
            self.values[known.key, call] = _snapshot(value, known.written_here)
        return value

    def compare_total(self, path: str, call: int, node: Node, args: Any, value: Any) -> Any:
        """Quantized, on its own values."""
        for known in self.there.get((path, node.name), ()):
            if (known.key, call) in self.values:
                reference = self.values[known.key, call]
                known.reason = known.reason or known.total.add(reference, known.seen(value))
        return value

    def force_float(self, path: str, call: int, node: Node, args: Any, value: Any) -> Any:
        """Float, on the rounded values of `record`: what it computes is the reference."""
        known = self.here.get((path, node.name))
        if known is None or (known.key, call) not in self.values:
            return value
        self.references[known.key, call] = _snapshot(value, known.written_here)
        wanted = known.rounded(self.values[known.key, call])
        self.values[known.key, call] = wanted
        return _replaced(value, wanted, known.written_here)

    def compare_local(self, path: str, call: int, node: Node, args: Any, value: Any) -> Any:
        """Quantized, on the same values."""
        for known in self.there.get((path, node.name), ()):
            if (known.key, call) not in self.references:
                continue
            seen = known.seen(value)
            known.local.add(self.references.pop((known.key, call)), seen)
            own = self.values.pop((known.key, call))
            if not mismatch(own, seen):
                value = _replaced(value, known.held(own), known.written_there)
        return value


def _snapshot(value: Any, is_written: bool) -> Any:
    """The value as it is now, whatever is written into it later."""
    return pytree.tree_map_only(Tensor, Tensor.clone, value) if is_written else value


def _replaced(value: Any, wanted: Any, is_written: bool) -> Any:
    """Put another value in the place of one; into its memory, where others look into that."""
    if not is_written:
        return pytree.tree_map(_in_type, wanted, value)
    for old, new in zip(pytree.tree_leaves(value), pytree.tree_leaves(wanted), strict=True):
        if isinstance(old, Tensor) and not _overlaps_itself(old):
            old.copy_(new)
    return value


def _in_type(wanted: Any, value: Any) -> Any:
    return wanted.to(value.dtype) if isinstance(wanted, Tensor) else wanted


def _overlaps_itself(tensor: Tensor) -> bool:
    """Whether elements share memory, as those of an expanded tensor do."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return any(stride == 0 and size > 1 for size, stride in sizes)
