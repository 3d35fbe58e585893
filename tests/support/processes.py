"""Processes of their own that need not import anything: each is forked from a warm one.

The warm process is forked when the tests are collected. It has imported what they import and run
nothing, so that no thread of a runtime or of an allocator is lost when it is forked again.
"""

from __future__ import annotations

import faulthandler
import io
import logging
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_warm: list[tuple[int, Connection]] = []
FAILED = 1


@dataclass(frozen=True)
class Started:
    """A process that runs, or waits for those that were started before it."""

    folder: Path
    answers: Connection

    def wait(self) -> subprocess.CompletedProcess[str]:
        """Its exit code and what it printed."""
        folder, code = self.answers.recv()
        while folder != self.folder:  # of one that nobody waited for
            folder, code = self.answers.recv()
        printed = [(self.folder / name).read_text() for name in ("out", "err")]
        return subprocess.CompletedProcess((), code, *printed)


def keep_one_warm() -> None:
    """Fork the process that the others are forked from; it ends with this one."""
    here, there = Pipe()
    child = os.fork()
    if child == 0:
        here.close()
        _serve(there)
    there.close()
    _warm.append((child, here))


def let_it_go() -> None:
    """Wait for the end of the warm process, where there is one."""
    while _warm:
        child, connection = _warm.pop()
        connection.close()
        os.waitpid(child, 0)


def start(function: Callable[..., object], *args: object) -> Started:
    """Call what can be pickled, with such arguments, in a process of its own."""
    folder = Path(tempfile.mkdtemp(prefix="pt2q-process-"))
    _, connection = _warm[-1]
    call = pickle.dumps((os.getcwd(), dict(os.environ), function, args))
    connection.send((folder, call))
    return Started(folder, connection)


def run_code(
    code: str, *args: object, path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """What ``python -c CODE ARGS`` does, with a folder in front of those that are imported from."""
    return start(_run_code, code, tuple(map(str, args)), path and str(path)).wait()


def _run_code(code: str, args: tuple[str, ...], path: str | None) -> None:
    sys.argv = ["-c", *args]
    if path is not None:
        sys.path.insert(0, path)
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})


def _serve(requests: Connection) -> None:
    while True:
        try:
            folder, call = requests.recv()
        except EOFError:
            os._exit(0)
        child = os.fork()
        if child == 0:
            _become(folder, call)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        requests.send((folder, code))


def _become(folder: Path, call: bytes) -> None:
    """Do what is asked for and end as a process of Python's would."""
    code = FAILED
    try:
        _own_output(folder)
        place, environment, function, args = pickle.loads(call)
        os.chdir(place)
        os.environ.clear()
        os.environ.update(environment)
        code = _exit_code(partial(function, *args))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _exit_code(call: Callable[[], object]) -> int:
    try:
        call()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return FAILED
    except BaseException:
        traceback.print_exc()
        return FAILED
    return 0


def _own_output(folder: Path) -> None:
    """Print into files; nothing that pytest watches with is left."""
    for stream, name in ((1, "out"), (2, "err")):
        file = os.open(folder / name, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, stream)
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(os.fdopen(os.dup(n), "wb"), line_buffering=True) for n in (1, 2)
    )
    faulthandler.enable(file=2)
    logging.root.handlers.clear()
    logging.root.setLevel(logging.WARNING)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    warnings.resetwarnings()
    warnings.simplefilter("ignore", DeprecationWarning)
    warnings.showwarning = _print_warning


def _print_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))
