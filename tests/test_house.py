"""Files and functions stay short: what a reader has to hold in mind at once has a bound."""

from __future__ import annotations

import ast
import math
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PARTS = {"library": ("pt2q", "passes", "quantizers"), "tests": ("tests",)}


def files_of(part: str) -> list[Path]:
    return [path for folder in PARTS[part] for path in sorted((ROOT / folder).rglob("*.py"))]


def function_lines(source: str) -> Iterator[int]:
    """The lines of each function from its ``def`` to its end, without its docstring."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        if ast.get_docstring(node, clean=False) is not None:
            text = node.body[0]
            length -= (text.end_lineno or text.lineno) - text.lineno + 1
        yield length


def percentile(values: list[int], share: float) -> int:
    """The smallest value that a share of them does not exceed."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


SOURCE = '''
def one(x):
    """Says what it does.

    In several lines.
    """
    return x


@decorated
def other(
    x,
):
    def inner():
        return x

    return inner
'''


def test_lines_are_counted_as_said() -> None:
    assert sorted(function_lines(SOURCE)) == [2, 2, 7]
    assert percentile(list(range(1, 101)), 0.95) == 95
    assert percentile([7], 0.95) == 7


@pytest.mark.parametrize("part", PARTS)
def test_files_are_short(part: str) -> None:
    lines = {path: len(path.read_text().splitlines()) for path in files_of(part)}
    assert len(lines) > 100
    assert statistics.median(lines.values()) <= 150
    assert percentile(list(lines.values()), 0.95) <= 400
    assert not [f"{path}: {count} lines" for path, count in lines.items() if count > 450]


@pytest.mark.parametrize("part", PARTS)
def test_functions_are_short(part: str) -> None:
    lines = [count for path in files_of(part) for count in function_lines(path.read_text())]
    assert len(lines) > 1000
    assert statistics.median(lines) <= 10
    assert percentile(lines, 0.95) <= 25
