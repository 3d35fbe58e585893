"""Shared set-up: one thread and fixed seeds, so that a failure repeats."""

from __future__ import annotations

import functools
import gc
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import settings
from support.processes import keep_one_warm, let_it_go
from support.seeds import seeded
from torch.export import ExportedProgram

from pt2q.ir.torch_private import compiled_when_asked, composites_looked_up_once
from pt2q.passes import verified_passes
from pt2q.replaced import replaced

# The same examples in every run, however slow the machine: a failure repeats.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

torch.set_num_threads(1)

# Graphs are made of objects by the ten thousand, and few of them are garbage: look seldom.
gc.set_threshold(50_000, 20, 50)
FILES = 10
_ended = itertools.count(1)


def pytest_collectstart(collector: pytest.Collector) -> None:
    """What a module draws while it is imported is the same in every run, alone or among others."""
    if isinstance(collector, pytest.Module):
        torch.manual_seed(0)


def pytest_collection_finish() -> None:
    """What is imported by now stays: the garbage collector need not look at it again and again."""
    gc.collect()
    gc.freeze()
    keep_one_warm()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """So does what is left of some files: what caches hold."""
    ends = nextitem is None or nextitem.path != item.path
    if ends and next(_ended) % FILES == 0:
        gc.collect()
        gc.freeze()


def pytest_unconfigure() -> None:
    let_it_go()


@pytest.fixture(autouse=True, scope="session")
def composites_known() -> Iterator[None]:
    """Taking a program apart looks all composite operators up; many tests do so."""
    with composites_looked_up_once():
        yield


@pytest.fixture(autouse=True, scope="session")
def exports_compiled_when_asked() -> Iterator[None]:
    """Capturing a program and unlifting it compile its code nine times; few tests run any of it."""
    with (
        replaced(torch.export, export=_compiled_when_asked(torch.export.export)),
        replaced(ExportedProgram, module=_compiled_when_asked(ExportedProgram.module)),
    ):
        yield


def _compiled_when_asked(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def compiled_later(*args: Any, **kwargs: Any) -> Any:
        alone = threading.current_thread() is threading.main_thread()  # threads would take turns
        with compiled_when_asked() if alone else nullcontext():
            return call(*args, **kwargs)

    return compiled_later


@pytest.fixture(autouse=True)
def fixed_seed() -> Iterator[None]:
    with seeded(0):
        yield


@pytest.fixture
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def every_pass_is_verified() -> Iterator[None]:
    """The laws of the graph are checked after each pass; nothing records gradients."""
    with verified_passes(), torch.no_grad():
        yield


@pytest.fixture(scope="module")
def patterns_known() -> Iterator[None]:
    """Of ExecuTorch's quantizer."""
    from support.foreign_patterns import patterns_captured_once

    with patterns_captured_once():
        yield
