"""Plain text tables of reports, laid out by Rich: for a terminal, a file, or a test."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from io import StringIO

from rich.console import Console
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


def _printed(table: Table, width: int) -> str:
    file = StringIO()
    Console(file=file, width=width, color_system=None, legacy_windows=False).print(table)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())
