"""What a spec holds in place of an observer: how to make one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

ObserverOrFakeQuantizeConstructor: TypeAlias = Callable[..., Any]
"""An observer or fake-quantize class, what its ``with_args`` returned, a partial or a function."""


@dataclass(frozen=True, eq=False)
class PartialWrapper:
    """A class, or a function that makes an observer, with some of its arguments filled in.

    ``SomeObserver.with_args(...)`` gives one. Calling it makes an observer. Two that would make
    the same are equal, so that specs written twice are equal, and it can be hashed and pickled.

    Args:
        p: the callable, or a ``functools.partial`` of it.
        callable_args: arguments that are computed anew, by calling these, for every observer.
    """

    p: Callable[..., Any]
    callable_args: Mapping[str, Callable[[], Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        inner = self.p
        computed = dict(self.callable_args)
        while isinstance(inner, PartialWrapper):
            computed = {**inner.callable_args, **computed}
            inner = inner.p
        if not isinstance(inner, functools.partial):
            inner = functools.partial(inner)
        elif isinstance(inner.func, PartialWrapper):
            wrapped, computed = inner.func, {**inner.func.callable_args, **computed}
            inner = functools.partial(wrapped.p, *inner.args, **inner.keywords)
        object.__setattr__(self, "p", inner)
        object.__setattr__(self, "callable_args", computed)

    @property
    def func(self) -> Callable[..., Any]:
        """What is called."""
        assert isinstance(self.p, functools.partial)
        return self.p.func

    @property
    def args(self) -> tuple[Any, ...]:
        """The arguments filled in by position."""
        assert isinstance(self.p, functools.partial)
        return self.p.args

    @property
    def keywords(self) -> dict[str, Any]:
        """The arguments filled in by name."""
        assert isinstance(self.p, functools.partial)
        return dict(self.p.keywords)

    def with_args(self, **kwargs: Any) -> PartialWrapper:
        """Return a constructor with these arguments added or replaced."""
        computed = {k: v for k, v in self.callable_args.items() if k not in kwargs}
        return PartialWrapper(functools.partial(self.p, **kwargs), computed)

    def with_callable_args(self, **kwargs: Callable[[], Any]) -> PartialWrapper:
        """Return a constructor that calls these for its arguments whenever it is called."""
        return PartialWrapper(self.p, {**self.callable_args, **kwargs})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Make an observer; arguments given here come before those filled in."""
        computed = {k: make() for k, make in self.callable_args.items() if k not in kwargs}
        return self.p(*args, **{**computed, **kwargs})

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, PartialWrapper) and _same(self._content(), other._content())

    def __hash__(self) -> int:
        # Values may be lists or tensors, which have no hash.
        return hash((self.func, len(self.args), frozenset(self.keywords)))

    def _content(self) -> tuple[Any, ...]:
        return self.func, self.args, self.keywords, dict(self.callable_args)

    def __repr__(self) -> str:
        named = sorted(self.keywords.items())
        arguments = [repr(a) for a in self.args] + [f"{name}={value!r}" for name, value in named]
        arguments += [f"{name}={make!r}()" for name, make in self.callable_args.items()]
        name = getattr(self.func, "__name__", repr(self.func))
        return f"{name}.with_args({', '.join(arguments)})"


def _same(one: Any, other: Any) -> bool:
    """Whether two arguments are equal: partials and tensors by what they hold."""
    if isinstance(one, functools.partial) and isinstance(other, functools.partial):
        return PartialWrapper(one) == PartialWrapper(other)
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return _same_tensor(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        alike = type(one) is type(other) and len(one) == len(other)
        return alike and all(map(_same, one, other))
    return bool(one == other)


def _same_tensor(one: Any, other: Any) -> bool:
    if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
        return False
    return one.dtype == other.dtype and torch.equal(one, other)


def with_args(cls: Callable[..., Any], **kwargs: Any) -> PartialWrapper:
    """Return a constructor of ``cls`` with some arguments filled in."""
    return PartialWrapper(functools.partial(cls, **kwargs))


class WithArgs:
    """What every class that specs name has: constructors with arguments filled in."""

    @classmethod
    def with_args(cls, **kwargs: Any) -> PartialWrapper:
        """Return a constructor of this class with some arguments filled in."""
        return with_args(cls, **kwargs)

    @classmethod
    def with_callable_args(cls, **kwargs: Callable[[], Any]) -> PartialWrapper:
        """Return a constructor that calls these for its arguments whenever it is called."""
        return with_args(cls).with_callable_args(**kwargs)


def accepted(ctr: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments that a constructor takes by name.

    Args:
        ctr: a class or function, or either with arguments filled in.
        arguments: by name.
    """
    called = _innermost(ctr)
    hashable = isinstance(called, Hashable)
    named = _parameters(called) if hashable else _parameters.__wrapped__(called)
    return {key: value for key, value in arguments.items() if named is None or key in named}


@functools.lru_cache(maxsize=1024)
def _parameters(called: Any) -> frozenset[str] | None:
    """The names that a class or function takes; None where it takes any, or does not say.

    Kept, because every observer that is made asks, and reading a signature takes longer than that.
    """
    try:
        parameters = inspect.signature(called).parameters.values()
    except (TypeError, ValueError):  # written in C, say
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return frozenset(
        p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    )


def _innermost(ctr: Any) -> Any:
    """What a constructor calls in the end, whatever is filled in."""
    at = ctr
    while isinstance(partial := getattr(at, "p", at), functools.partial):
        at = partial.func
    return at


def unwrapped(ctr: Any) -> tuple[Any, dict[str, Any]]:
    """The class or function that a constructor calls, and the arguments filled in by name.

    Args:
        ctr: a class or function, a partial of it, or a ``with_args`` of any library.

    Returns:
        ``(None, {})`` where arguments are filled in by position or computed anew for every call.
    """
    arguments: dict[str, Any] = {}
    at = ctr
    while True:
        if getattr(at, "callable_args", None):
            return None, {}
        partial = getattr(at, "p", at)  # a wrapper around functools.partial
        if not isinstance(partial, functools.partial):
            return at, arguments
        if partial.args:
            return None, {}
        arguments = {**partial.keywords, **arguments}
        at = partial.func
