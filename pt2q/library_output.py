"""What other libraries print and raise, kept away from the user's terminal without losing it.

ExecuTorch logs from C++ to standard error, and importing it sets up the root logger. Both are
turned around here: the native log becomes text that an error message can carry.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass

_NOISY_LOGGERS = ("torchao", "executorch", "torch.utils._pytree", "torch.export", "root")


@dataclass
class NativeLog:
    """What native code wrote while it was watched; `text` is complete once the block has ended."""

    text: str = ""

    @property
    def last_line(self) -> str:
        """The last line without its source position, or an empty string."""
        lines = [line.strip() for line in self.text.splitlines() if line.strip()]
        return lines[-1].split("] ", 1)[-1] if lines else ""


@contextmanager
def quiet_python() -> Iterator[None]:
    """Hide third-party warnings and log records below ERROR; leave the root logger as it was."""
    root = logging.getLogger()
    root_before = (root.level, list(root.handlers))
    loggers = [logging.getLogger(name) for name in _NOISY_LOGGERS if name != "root"]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        root.level, root.handlers[:] = root_before


@contextmanager
def captured_stderr() -> Iterator[NativeLog]:
    """Collect what is written to `sys.stderr` and to file descriptor 2, by native code too.

    Both belong to the whole process: what other threads write to them during the block is
    collected with the rest, so keep the block short.
    """
    log = NativeLog()
    with tempfile.TemporaryFile() as sink:
        try:
            with (
                open(sink.fileno(), "w", errors="replace", closefd=False) as text,
                _descriptor_to(sink.fileno()),
                redirect_stderr(text),
            ):
                yield log
        finally:
            sink.seek(0)
            log.text = sink.read().decode(errors="replace")


@contextmanager
def _descriptor_to(target: int) -> Iterator[None]:
    try:
        saved = os.dup(2)
    except OSError:  # no standard error, as under some service managers
        yield
        return
    with suppress(Exception):  # a closed or replaced sys.stderr has nothing to flush
        sys.stderr.flush()
    os.dup2(target, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def first_line(error: BaseException) -> str:
    """An exception of another library as one line: its type and the start of its message.

    A start that ends in a colon says nothing without the line after it; an exception that only
    carries another one says nothing without that one.
    """
    error = getattr(error, "inner_exception", None) or error
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    start = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return f"{type(error).__name__}: {start}"


def cause_line(error: BaseException) -> str:
    """As `first_line`, of the exception that this one was raised from, if there is one."""
    return first_line(error.__cause__ or error)
