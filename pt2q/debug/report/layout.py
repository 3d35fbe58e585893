"""Where the boxes of a graph stand: rows by their distance from the inputs, few crossings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pt2q.debug.drawing.picture import BORDER, CONSTANT, Box

WIDTH, HEIGHT, GAP_X, GAP_Y = 168, 34, 24, 26


@dataclass(frozen=True)
class Placed:
    """A box with the place of its upper left corner."""

    box: Box
    x: float
    y: float
    reads: tuple[tuple[float, float, float, float], ...]


@dataclass(frozen=True)
class Layout:
    """Boxes with their places.

    Args:
        boxes: in the order of the graph.
        width, height: of all.
    """

    boxes: tuple[Placed, ...]
    width: float
    height: float


def laid_out(boxes: Sequence[Box]) -> Layout:
    """Place the operators of a graph; what stands between them is seen through.

    A box stands one row below the lowest that it reads. Within a row boxes stand in the order of
    the mean place of what they read.

    Args:
        boxes: of a model and its bodies, each graph in order.
    """
    seen = _seen_through(boxes)
    shown = [box for box in boxes if box.kind not in (BORDER, CONSTANT)]
    row: dict[str, int] = {}
    base = 0
    for path in dict.fromkeys(box.body for box in shown):
        inside = [box for box in shown if box.body == path]
        for box in inside:
            row[box.name] = max((row[n] + 1 for n in seen[box.name] if n in row), default=base)
        base = max((row[box.name] for box in inside), default=base) + 2
    column = _columns(shown, seen, row)
    place: dict[str, tuple[float, float]] = {
        n: (column[n] * (WIDTH + GAP_X), row[n] * (HEIGHT + GAP_Y)) for n in row
    }
    placed = tuple(_placed(box, place, seen[box.name]) for box in shown)
    width = max((x for x, _ in place.values()), default=0) + WIDTH
    return Layout(placed, width, max((y for _, y in place.values()), default=0) + HEIGHT)


def _seen_through(boxes: Iterable[Box]) -> dict[str, tuple[str, ...]]:
    """What each box reads, through borders."""
    hidden: dict[str, tuple[str, ...]] = {}
    found: dict[str, tuple[str, ...]] = {}
    for box in boxes:
        reads = [name for read in box.reads for name in hidden.get(read, (read,))]
        kept = tuple(dict.fromkeys(reads))
        if box.kind in (BORDER, CONSTANT):
            hidden[box.name] = kept if box.kind == BORDER else ()
        found[box.name] = kept
    return found


def _columns(
    boxes: Sequence[Box], seen: dict[str, tuple[str, ...]], row: dict[str, int]
) -> dict[str, float]:
    by_row: dict[int, list[Box]] = {}
    for box in boxes:
        by_row.setdefault(row[box.name], []).append(box)
    column: dict[str, float] = {}
    for _, inside in sorted(by_row.items()):
        wanted = {
            box.name: _mean([column[n] for n in seen[box.name] if n in column]) for box in inside
        }
        left = -1.0
        for box in sorted(inside, key=lambda b: wanted[b.name]):
            left = max(wanted[box.name], left + 1) if left >= 0 else max(wanted[box.name], 0.0)
            column[box.name] = left
    return column


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _placed(box: Box, place: dict[str, tuple[float, float]], reads: tuple[str, ...]) -> Placed:
    x, y = place[box.name]
    lines = tuple(
        (place[n][0] + WIDTH / 2, place[n][1] + HEIGHT, x + WIDTH / 2, y)
        for n in reads
        if n in place
    )
    return Placed(box, x, y, lines)
