"""Plain text tables of reports, laid out by Rich: for a terminal, a file, or a test."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from io import StringIO

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

# Wide enough that no line of a table is ever broken.
UNBROKEN = 100_000


def text_table(
    headers: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Collection[str] = (),
    width: int | None = None,
) -> str:
    """Columns two spaces apart under their headers and a rule.

    Args:
        headers: one per column.
        rows: a cell per header, as it is printed.
        right: the headers of the columns that are aligned at the right.
        width: columns of the terminal: the last column of the table is broken there, under
            itself. None never breaks a line.

    Returns:
        The lines, without spaces at their ends.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for header in headers:
        table.add_column(
            Text(header),
            justify="right" if header in right else "left",
            no_wrap=header is not headers[-1],
            overflow="fold",
        )
    table.add_row(*(Rule(characters="-", style="") for _ in headers))
    for cells in rows:
        table.add_row(*map(Text, cells))
    return _printed(table, UNBROKEN if width is None else width)


def stacked_table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    below: Sequence[str],
    *,
    right: Collection[str] = (),
    width: int,
) -> str:
    """A table that has a text below each row, which takes all of the width.

    Args:
        headers: one per column.
        rows: a cell per header.
        below: the texts, one per row; "" for none.
        right: the headers of the columns that are aligned at the right.
        width: columns of the terminal: texts are broken there, and the widest cells where not even
            the rows fit.
    """
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    while sum(widths) + 2 * (len(widths) - 1) > width and max(widths) > 1:
        widths[widths.index(max(widths))] -= 1

    def line(cells: Sequence[str]) -> Table:
        grid = Table.grid(padding=(0, 2, 0, 0))
        for header, columns in zip(headers, widths, strict=True):
            side = "right" if header in right else "left"
            grid.add_column(width=columns, justify=side, overflow="fold")  # type: ignore[arg-type]
        grid.add_row(*map(Text, cells))
        return grid

    parts: list[Table | Padding] = [line(headers), line(["-" * columns for columns in widths])]
    for cells, text in zip(rows, below, strict=True):
        parts += [line(cells), *([Padding(Text(text), (0, 0, 0, 4))] if text else [])]
    return _printed(Group(*parts), width)


def text_width(text: str) -> int:
    """Columns of the longest line."""
    return max(map(len, text.splitlines()), default=0)


def _printed(table: RenderableType, width: int) -> str:
    file = StringIO()
    Console(file=file, width=width, color_system=None, legacy_windows=False).print(table)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())
