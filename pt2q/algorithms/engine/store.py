"""Where a walk keeps the values that are still to be read: in memory, or in files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.fx import Node

from pt2q.algorithms.engine.runner import Values
from pt2q.ir.storage import packed, unpacked

Key = tuple[str, int]
"""A lane's name and a batch."""


class Store(Protocol):
    """Values by lane and batch."""

    def names(self, key: Key) -> set[Node]:
        """What is there."""
        ...

    def take(self, key: Key, wanted: Iterable[Node], last: Iterable[Node] = ()) -> Values:
        """Get values.

        Args:
            key: of which lane and batch.
            wanted: which.
            last: those of them that nobody will ask for again.
        """
        ...

    def put(self, key: Key, groups: Sequence[Mapping[Node, Any]]) -> None:
        """Keep values; those of one group may share storage and go on doing so.

        Args:
            key: of which lane and batch.
            groups: the values, each node in one group.
        """
        ...

    def close(self) -> None:
        """Drop everything."""
        ...


class Memory:
    """Values as they are."""

    def __init__(self) -> None:
        self._held: dict[Key, Values] = {}

    def names(self, key: Key) -> set[Node]:
        """See `Store.names`."""
        return set(self._held.get(key, ()))

    def take(self, key: Key, wanted: Iterable[Node], last: Iterable[Node] = ()) -> Values:
        """See `Store.take`."""
        held = self._held.setdefault(key, {})
        found = {node: held[node] for node in wanted}
        for node in last:
            held.pop(node, None)
        return found

    def put(self, key: Key, groups: Sequence[Mapping[Node, Any]]) -> None:
        """See `Store.put`."""
        held = self._held.setdefault(key, {})
        for group in groups:
            held.update(group)

    def close(self) -> None:
        """See `Store.close`."""
        self._held.clear()


class Files:
    """Values in a temporary folder, one file a group, mapped into memory when they are read.

    Args:
        folder: where the temporary folder is made; None lets the system choose.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="pt2q-values-", dir=folder)
        self._file_of: dict[Key, dict[Node, Path]] = {}
        self._nodes_in: dict[Path, set[Node]] = {}
        self._made = 0

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return Path(self._folder.name)

    def names(self, key: Key) -> set[Node]:
        """See `Store.names`."""
        return set(self._file_of.get(key, ()))

    def take(self, key: Key, wanted: Iterable[Node], last: Iterable[Node] = ()) -> Values:
        """See `Store.take`."""
        files, found, loaded = self._file_of.setdefault(key, {}), {}, {}
        for node in wanted:
            path = files[node]
            if path not in loaded:
                loaded[path] = torch.load(path, mmap=True, weights_only=False)
            found[node] = unpacked(loaded[path][node.name])
        for node in last:
            self._drop(key, node)
        return found

    def put(self, key: Key, groups: Sequence[Mapping[Node, Any]]) -> None:
        """See `Store.put`."""
        files = self._file_of.setdefault(key, {})
        for group in groups:
            for node in group:
                self._drop(key, node)
            alone = len(group) == 1
            content = {n.name: packed(value) if alone else value for n, value in group.items()}
            path = self.folder / f"{self._made}.pt"
            self._made += 1
            torch.save(content, path)
            files.update(dict.fromkeys(group, path))
            self._nodes_in[path] = set(group)

    def _drop(self, key: Key, node: Node) -> None:
        path = self._file_of[key].pop(node, None)
        if path is None:
            return
        self._nodes_in[path].discard(node)
        if not self._nodes_in[path]:
            del self._nodes_in[path]
            path.unlink()  # what is mapped stays readable

    def close(self) -> None:
        """See `Store.close`."""
        self._file_of.clear()
        self._nodes_in.clear()
        self._folder.cleanup()
