"""Packages load while the garbage collector rests, in a process of the command's own alone."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

import pytest

from pt2q.app.cli import main
from pt2q.app.loading import OWN_PROCESS, load, loading
from pt2q.deploy.registry import BACKENDS


@pytest.fixture
def own_process() -> Iterator[None]:
    token = OWN_PROCESS.set(True)
    yield
    OWN_PROCESS.reset(token)
    gc.unfreeze()


def test_the_collector_rests_while_packages_load(own_process: None) -> None:
    with pytest.raises(ValueError, match="x"), loading():
        assert not gc.isenabled()
        raise ValueError("x")
    assert gc.isenabled() and gc.get_freeze_count() > 1000
    gc.unfreeze()
    gc.disable()
    try:
        with loading():  # somebody has switched it off, and keeps it so
            pass
        assert not gc.isenabled() and not gc.get_freeze_count()
    finally:
        gc.enable()


def test_a_process_that_calls_the_command_keeps_its_collector() -> None:
    OWN_PROCESS.set(True)
    with pytest.raises(SystemExit):
        main(["--version"])
    assert not OWN_PROCESS.get()
    with loading():
        assert gc.isenabled()
    assert not gc.get_freeze_count()


def test_what_is_not_installed_is_left_to_who_needs_it() -> None:
    load(("pt2q_is_not_this", "executorch.exir"))
    assert "executorch.exir" in sys.modules
    assert "executorch.exir" in BACKENDS["xnnpack"].loads
