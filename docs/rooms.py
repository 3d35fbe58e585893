"""Draw the rooms of the package from its code: `python docs/rooms.py` writes docs/rooms.svg.

Rooms stand in the order that the import contract in pyproject.toml gives them, the lowest at the
bottom. An arc on the right is an import of a lower room, its width the number of importing files;
an import of a higher room would be drawn on the left, in red.
"""

from __future__ import annotations

import ast
from collections import Counter
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PICTURE = Path(__file__).with_name("rooms.svg")
PLACES = {"passes": ROOT / "passes", "quantizers": ROOT / "quantizers"}
ORDER = (
    "app",
    "demo",
    "debug",
    "deploy",
    "algorithms",
    "distributed",
    "flow",
    "quantizers",
    "passes",
    "training",
    "observers",
    "spec",
    "numerics",
    "ir",
)
WIDTH, LEFT, BOX, HEIGHT, GAP, LINE = 1000, 70, 690, 30, 14, 15
WRAP = 112

Arrows = dict[tuple[str, str], int]


def place_of(room: str) -> Path:
    """The folder or file of a room."""
    folder = PLACES.get(room, ROOT / "pt2q" / room)
    return folder if folder.is_dir() else folder.with_suffix(".py")


def files_of(room: str) -> list[Path]:
    """The Python files of a room, sorted."""
    place = place_of(room)
    return sorted(place.rglob("*.py")) if place.is_dir() else [place]


def purpose_of(room: str) -> str:
    """The first line of what a room says about itself."""
    place = place_of(room)
    text = ast.get_docstring(
        ast.parse((place / "__init__.py" if place.is_dir() else place).read_text())
    )
    return (text or "").splitlines()[0]


def contents_of(room: str) -> list[str]:
    """The files and folders of a room by name, without `__init__`."""
    place = place_of(room)
    if not place.is_dir():
        return []
    folders = {f"{path.parent.name}/" for path in place.glob("*/__init__.py")}
    return sorted({path.stem for path in place.glob("*.py")} - {"__init__"} | folders)


def rooms_used(file: Path) -> set[str]:
    """The rooms that a file imports from."""
    used = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        used |= {name.split(".")[1] for name in names if name.startswith("pt2q.")}
    return used & set(ORDER)


def arrows() -> Arrows:
    """How many files of the first room import the second one."""
    found: Counter[tuple[str, str]] = Counter()
    for room in ORDER:
        for file in files_of(room):
            found.update((room, other) for other in rooms_used(file) - {room})
    return dict(found)


def wrapped(words: list[str]) -> list[str]:
    """Words in lines of at most `WRAP` characters."""
    lines = [""]
    for word in words:
        if len(lines[-1]) + len(word) > WRAP:
            lines.append("")
        lines[-1] += word + "   "
    return [line.rstrip() for line in lines if line.strip()]


def room_box(room: str, top: int, lines: list[str]) -> list[str]:
    """The drawing of one room."""
    height = HEIGHT + LINE * len(lines)
    shapes = [f'<rect class="room" x="{LEFT}" y="{top}" width="{BOX}" height="{height}" rx="6"/>']
    shapes.append(
        f'<text x="{LEFT + 12}" y="{top + 20}"><tspan class="name">{room}</tspan>'
        f'<tspan class="purpose" dx="10">{escape(purpose_of(room))}</tspan></text>'
    )
    for number, line in enumerate(lines):
        y = top + 20 + LINE * (number + 1)
        shapes.append(f'<text class="file" x="{LEFT + 12}" y="{y}">{escape(line)}</text>')
    return shapes


def arc(start: float, end: float, count: int, depth: int, *, upward: bool) -> str:
    """An import: from the height of one room to that of another."""
    x, side = (LEFT, -1) if upward else (LEFT + BOX, 1)
    reach = x + side * (14 + 17 * depth)
    kind = "wrong" if upward else "import"
    return (
        f'<path class="{kind}" stroke-width="{min(1 + count / 6, 5):.1f}" marker-end="url(#tip)" '
        f'd="M{x} {start:.0f} C{reach} {start:.0f} {reach} {end:.0f} {x} {end:.0f}"/>'
    )


STYLE = """
svg { background: #ffffff; font-family: sans-serif }
.room { fill: #eef3fa; stroke: #7f96b5 }
.name { font-weight: bold; font-size: 14px; fill: #14233a }
.purpose { font-size: 11px; fill: #3b4a60 }
.file { font-size: 10px; font-family: monospace; fill: #55647a }
.import { fill: none; stroke: #5a7fb0; stroke-opacity: 0.55 }
.wrong { fill: none; stroke: #d03030 }
"""
TIP = (
    '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
    'markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0L8 4L0 8z" fill="#5a7fb0"/></marker>'
)


def drawing() -> str:
    """The picture, as SVG."""
    shapes, top, middle = [], 10, {}
    for room in ORDER:
        lines = wrapped(contents_of(room))
        height = HEIGHT + LINE * len(lines)
        shapes += room_box(room, top, lines)
        middle[room] = (top, top + height)
        top += height + GAP
    for (room, other), count in sorted(arrows().items()):
        distance = ORDER.index(other) - ORDER.index(room)
        start, end = middle[room][1] - 8, middle[other][0] + 8
        shapes.append(arc(start, end, count, abs(distance), upward=distance < 0))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" role="img">'
    return "\n".join(
        [head, f"<style>{STYLE}</style>", f"<defs>{TIP}</defs>", *shapes, "</svg>", ""]
    )


if __name__ == "__main__":
    PICTURE.write_text(drawing())
