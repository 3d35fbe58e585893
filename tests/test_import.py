"""Importing pt2q loads what preparing and converting need, and finds the rest when asked."""

from __future__ import annotations

import subprocess
import sys

import pytest

import pt2q


def in_a_new_process(code: str) -> str:
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_rooms_that_are_not_needed_are_loaded_when_asked_for() -> None:
    loaded = "[r for r in ('algorithms', 'debug', 'app', 'deploy') if f'pt2q.{r}' in sys.modules]"
    code = f"import sys, pt2q; print({loaded}); pt2q.debug; pt2q.quantize_pt2e; print({loaded})"
    assert in_a_new_process(code).splitlines() == ["[]", "['algorithms', 'debug']"]


def test_every_public_name_is_there() -> None:
    assert set(pt2q.__all__) <= set(dir(pt2q))
    for name in pt2q.__all__:
        assert getattr(pt2q, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        pt2q.quantise  # noqa: B018 - looking it up is what is tested
