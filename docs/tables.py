"""Writes the tables of these pages from the tables that the quantizers run by, and recipes' keys.

A page has a place for each, between two comments: ``<!-- rows: XNNPACK -->`` and ``<!-- end -->``.
``python docs/tables.py`` fills all of them; a test fails where a page says something else.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from pt2q.app.recipe.keys import backend_table, key_table
from pt2q.quantizers.tables import TABLES
from pt2q.quantizers.toolkit.reasons import REASONS
from pt2q.quantizers.toolkit.report.markdown import limits_table, reason_table, rule_table

KEYS = {"all": key_table, "backends": backend_table}
PLACE = re.compile(r"<!-- (rows|limits|reasons|keys): (.*?) -->\n.*?<!-- end -->", re.DOTALL)


def filled(text: str) -> str:
    """A page with its tables as the quantizers have them now."""
    return PLACE.sub(_fill, text)


def _fill(place: re.Match[str]) -> str:
    kind, name = place.groups()
    if kind == "reasons":
        table = reason_table(REASONS)
    elif kind == "keys":
        table = KEYS[name]()
    else:
        table = (rule_table if kind == "rows" else limits_table)(TABLES[name])
    return f"<!-- {kind}: {name} -->\n\n{table}\n\n<!-- end -->"


def main() -> None:
    """Fill the pages beside this file, and say which have changed."""
    for page in sorted(Path(__file__).parent.glob("*.md")):
        text = page.read_text()
        if filled(text) != text:
            page.write_text(filled(text))
            sys.stdout.write(f"{page.name} has new tables\n")


if __name__ == "__main__":
    main()
