"""One thread at a time: what is read, added to and written back is not read by another between."""

from __future__ import annotations

import os
import threading
from typing import Any


class OneAtATime:
    """A lock of its own for each owner; a copy and a pickle of it are new ones, not held.

    So is that of a forked process: a thread that held it does not exist there.
    """

    def __init__(self) -> None:
        self._lock, self._process = threading.RLock(), os.getpid()

    def __enter__(self) -> None:
        if self._process != os.getpid():
            self._lock, self._process = threading.RLock(), os.getpid()
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def __deepcopy__(self, memo: dict[int, Any]) -> OneAtATime:
        return OneAtATime()

    def __reduce__(self) -> tuple[Any, ...]:
        return OneAtATime, ()
