"""What is found by name: our own, and what installed packages add by an entry point.

A registry holds where things are, not the things: a name is imported when it is asked for, so that
listing names costs little and a package that cannot be imported harms nobody who does not use it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from pt2q.errors import PluginError, PluginWarning, UnknownNameError

T = TypeVar("T")
OURS = "pt2q"


class Registry(Generic[T]):
    """Things of one kind by name, in the order of `ours`, then those of packages by name.

    A name of ours cannot be taken by a package, and of two packages that offer the same name
    neither is used: which one would come first is an accident of their installation.
    """

    def __init__(
        self,
        noun: str,
        group: str,
        ours: Mapping[str, str],
        check: Callable[[str, object], T],
    ) -> None:
        """Say what is ours and where packages declare theirs.

        Args:
            noun: what one thing is called in messages, such as ``backend``.
            group: the group of entry points in which packages declare theirs.
            ours: where each of ours is, as ``module:attribute``, by name.
            check: given a name and what was found there; returns it, or raises TypeError.
        """
        self.noun, self.group, self._check = noun, group, check
        self._ours = {n: EntryPoint(n, where, group) for n, where in ours.items()}
        self._loaded: dict[str, T] = {}
        self._warned = False

    def __iter__(self) -> Iterator[str]:
        return iter(self._offers)

    def __len__(self) -> int:
        return len(self._offers)

    def __contains__(self, name: object) -> bool:
        return name in self._offers

    def __getitem__(self, name: str) -> T:
        """What has this name; imported when asked for first.

        Raises:
            UnknownNameError: nothing has this name; the message lists what there is.
            PluginError: the package that offers it cannot be used.
        """
        self._warn()
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def available(self) -> dict[str, T]:
        """All that can be loaded, by name; a `PluginWarning` for each that cannot."""
        found: dict[str, T] = {}
        for name in self:
            try:
                found[name] = self[name]
            except PluginError as error:
                warnings.warn(str(error), PluginWarning, stacklevel=2)
        return found

    def package(self, name: str) -> str:
        """The distribution that offers a name; ``pt2q`` for ours.

        Raises:
            UnknownNameError: nothing has this name.
        """
        if name not in self._offers:
            raise UnknownNameError(self._unknown(name))
        return _package(self._offers[name])

    # ------------------------------------------------------------------ finding

    @cached_property
    def _theirs(self) -> Mapping[str, tuple[EntryPoint, ...]]:
        found: dict[str, tuple[EntryPoint, ...]] = {}
        for entry in sorted(entry_points(group=self.group), key=lambda entry: entry.name):
            found[entry.name] = (*found.get(entry.name, ()), entry)
        return found

    @cached_property
    def _offers(self) -> Mapping[str, EntryPoint]:
        theirs = self._theirs.items()
        accepted = {name: found[0] for name, found in theirs if not self._clash(name, found)}
        return {**self._ours, **accepted}

    def _warn(self) -> None:
        """Say, when something is taken for the first time, what is left out."""
        if self._warned:
            return
        self._warned = True
        for refused in filter(None, (self._clash(*item) for item in self._theirs.items())):
            warnings.warn(refused, PluginWarning, stacklevel=3)

    def _clash(self, name: str, entries: Sequence[EntryPoint]) -> str:
        """Why a name cannot be given to packages; "" if it can."""
        packages = " and ".join(sorted(_package(entry) for entry in entries))
        if name in self._ours:
            return f"{self.noun} {name!r} is pt2q's own: that of {packages} is not used"
        if len(entries) > 1:
            return f"{packages} both offer {self.noun} {name!r}: neither is used; uninstall one"
        return ""

    def _load(self, name: str) -> T:
        if name not in self._offers:
            raise UnknownNameError(self._unknown(name))
        entry = self._offers[name]
        if name in self._ours:
            return self._check(name, entry.load())
        try:
            return self._check(name, entry.load())
        except Exception as error:  # it is foreign code
            raise PluginError(
                f"package {_package(entry)} offers {self.noun} {name!r} as {entry.value}, which "
                f"cannot be used: {type(error).__name__}: {error}; mend or uninstall the package"
            ) from error

    def _unknown(self, name: str) -> str:
        near = get_close_matches(name, self, n=1)
        meant = f", did you mean {near[0]!r}?" if near else ""
        return f"unknown {self.noun} {name!r}: choose from {', '.join(self)}{meant}"


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else OURS
