"""A lane: one way of running a program, by what its observers do and which tensors it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule

from pt2q.algorithms.engine.rounding import Rounding, is_static, rounding_of
from pt2q.ir.graph import get_constant
from pt2q.observers.protocol import has_data

Place = tuple[nn.Module, str]
"""A tensor's module and its qualified name in there."""


class Lane:
    """One way of running a program.

    Args:
        name: tells lanes of a walk apart.
        rounds: which observers do what their quantize and dequantize will; others are identities.
        watches: which observers look at what passes.
        keeps: go on reading the tensors that the walk began with when the module's are changed.

    Attributes:
        batch: the place of the batch that is run, among all.
    """

    def __init__(
        self,
        name: str,
        rounds: Callable[[Any], bool] = lambda observer: False,
        watches: Callable[[Any], bool] = lambda observer: False,
        *,
        keeps: bool = False,
    ) -> None:
        self.name = name
        self.keeps = keeps
        self.batch: int | None = None
        self.rounds = rounds
        self.watches = watches
        self.own: dict[Place, Tensor] = {}
        self._roundings: dict[int, tuple[Any, Rounding]] = {}
        self._instead: dict[int, tuple[Any, Any]] = {}

    @classmethod
    def floating(cls) -> Lane:
        """Nothing rounds."""
        return cls("float", keeps=True)

    @classmethod
    def rounding(cls) -> Lane:
        """Every observer rounds: what the converted model will compute."""
        return cls("rounded", lambda observer: True)

    def fork(
        self,
        rounds: Callable[[Any], bool] | None = None,
        watches: Callable[[Any], bool] | None = None,
    ) -> Lane:
        """A lane that reads the same tensors, with other observers rounding or watching."""
        made = Lane(self.name, rounds or self.rounds, watches or self.watches, keeps=self.keeps)
        made.own = dict(self.own)
        made._instead = dict(self._instead)
        if rounds is None:
            made._roundings = dict(self._roundings)
        return made

    def substitute(self, pairs: Iterable[tuple[Any, Any]]) -> None:
        """Let observers stand in for others: pairs of an observer and its stand-in."""
        self._instead.update({id(old): (old, new) for old, new in pairs})

    def hold(self, tensors: Mapping[Place, Tensor]) -> None:
        """Read these tensors, in the types of the module's, whatever becomes of those."""
        for (owner, target), tensor in tensors.items():
            self.own[owner, target] = tensor.to(get_constant(owner, target).dtype)

    def tensor(self, owner: GraphModule, target: str) -> Any:
        """What a ``get_attr`` node reads: a tensor, or a body of control flow."""
        found = self.own.get((owner, target))
        if found is not None:
            return found
        body = owner._modules.get(target)
        return body if isinstance(body, GraphModule) else get_constant(owner, target).detach()

    def observed(self, observer: Any, value: Tensor, *, constant: bool = False) -> Tensor:
        """What passes an observer.

        Args:
            observer: the observer.
            value: what it is called with.
            constant: the value is a weight, which an observer without data of its own is shown, as
                it is when the model is converted.

        Raises:
            NoDataError: it rounds, is static and has seen no data.
        """
        observer = self._instead.get(id(observer), (observer, observer))[1]
        if self.watches(observer):
            observer(value)
        if not self.rounds(observer):
            return value
        if value.numel() == 0:
            return value
        if id(observer) not in self._roundings:
            self._roundings[id(observer)] = (observer, _rounding(observer, value, constant))
        return self._roundings[id(observer)][1](value).to(value.dtype)

    def round_by(self, observer: Any, rounding: Rounding) -> None:
        """Let a function do what an observer's quantize and dequantize do."""
        self._roundings[id(observer)] = (observer, rounding)

    def forget_all(self) -> None:
        """Ask every observer for its parameters anew."""
        self._roundings.clear()

    def forget(self, observers: Iterable[Any]) -> None:
        """Ask observers for their parameters anew: they, or what they watch, have changed."""
        for observer in observers:
            self._roundings.pop(id(observer), None)


def _rounding(observer: Any, value: Tensor, constant: bool) -> Rounding:
    if not constant or not is_static(observer):
        return rounding_of(observer, value.dim())
    empty = not has_data(observer)
    if empty or getattr(observer, "constant_input", False):
        observer(value)
    made = rounding_of(observer, value.dim())
    if empty and hasattr(observer, "reset"):
        observer.reset()
    return made
