"""Where a walk keeps the values that are still to be read: in memory, or in files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.fx import Node

from pt2q.algorithms.engine.runner import Values
from pt2q.ir.storage import Part, packed, unpacked

Key = tuple[str, int]
"""A lane's name and a batch."""
Index = list[tuple[str, int, str, str]]
"""Lane, batch, node and file of each value."""
SUFFIX = ".pt"


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
        kept: a folder to use instead, which stays.
    """

    def __init__(self, folder: str | Path | None = None, kept: Path | None = None) -> None:
        self._kept = kept
        self._temporary = (
            tempfile.TemporaryDirectory(prefix="pt2q-values-", dir=folder) if kept is None else None
        )
        self._file_of: dict[Key, dict[Node, Path]] = {}
        self._nodes_in: dict[Path, set[Node]] = {}
        self._made = 0

    @property
    def folder(self) -> Path:
        """Where the files are."""
        if self._temporary is not None:
            return Path(self._temporary.name)
        assert self._kept is not None
        return self._kept

    def names(self, key: Key) -> set[Node]:
        """See `Store.names`."""
        return set(self._file_of.get(key, ()))

    def take(self, key: Key, wanted: Iterable[Node], last: Iterable[Node] = ()) -> Values:
        """See `Store.take`."""
        files, found, loaded = self._file_of.setdefault(key, {}), {}, {}
        for node in wanted:
            path = files[node]
            if path not in loaded:
                loaded[path] = self._load(path)
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
            path = self.folder / f"{self._made}{SUFFIX}"
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
            self._delete(path)

    def _load(self, path: Path) -> Any:
        return torch.load(path, mmap=True, weights_only=False)

    def _delete(self, path: Path) -> None:
        path.unlink()  # what is mapped stays readable

    def close(self) -> None:
        """See `Store.close`."""
        self._file_of.clear()
        self._nodes_in.clear()
        if self._temporary is not None:
            self._temporary.cleanup()


class KeptFiles(Files):
    """Values in a folder that outlives the process: what `index` says stays there until the next.

    Args:
        folder: made when missing.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(kept=folder)
        # Files of a run that was stopped are not written over before they are read.
        numbers = (int(path.stem) for path in self._stored())
        self._made = max(numbers, default=-1) + 1
        self._dead: list[Path] = []

    def index(self) -> Index:
        """Where each value is, in plain words."""
        return [
            (lane, batch, node.name, path.name)
            for (lane, batch), files in self._file_of.items()
            for node, path in files.items()
        ]

    def forget_dropped(self) -> None:
        """Delete what was dropped since the last time: an index that is kept does not need it."""
        for path in self._dead:
            path.unlink()
        self._dead.clear()

    def restore(self, index: Index, nodes: Mapping[str, Node]) -> None:
        """Hold what an index says, and nothing else.

        Args:
            index: what `index` gave.
            nodes: of the graph, by name.
        """
        self._file_of.clear()
        self._nodes_in.clear()
        for lane, batch, node, name in index:
            path = self.folder / name
            self._file_of.setdefault((lane, batch), {})[nodes[node]] = path
            self._nodes_in.setdefault(path, set()).add(nodes[node])
        self._dead = [path for path in self._stored() if path not in self._nodes_in]
        self.forget_dropped()

    def _stored(self) -> list[Path]:
        return [path for path in self.folder.glob(f"*{SUFFIX}") if path.stem.isdigit()]

    def _load(self, path: Path) -> Any:
        with torch.serialization.safe_globals([Part]):
            return torch.load(path, mmap=True, weights_only=True)

    def _delete(self, path: Path) -> None:
        self._dead.append(path)
