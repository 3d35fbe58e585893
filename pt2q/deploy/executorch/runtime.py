"""Load `.pte` programs into the ExecuTorch runtime and call them."""

from __future__ import annotations

import logging
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any

from pt2q.deploy.executorch.loaded_method import LoadedMethod
from pt2q.deploy.provenance import KEY, read_provenance
from pt2q.errors import DataError, LoweringError
from pt2q.library_output import captured_stderr
from pt2q.optional import optional_modules

PROVENANCE = KEY.replace(".", "_")
"""A method that gives, as JSON, where the program comes from."""
logger = logging.getLogger(__name__)


class LoadedProgram:
    """A program in the ExecuTorch runtime; calling it runs `forward`."""

    def __init__(self, data: bytes) -> None:
        runtime = _runtime()
        with captured_stderr() as log:
            program = _load_native(runtime, data)
        logger.debug("ExecuTorch: %s", log.text)
        if isinstance(program, Exception):
            raise DataError(
                f"{len(data)} bytes are not a complete ExecuTorch program: "
                f"{log.last_line or program}. Write it again with Program.save()."
            ) from program
        self._runtime, self._data, self._program = runtime, data, program
        self._methods: dict[str, LoadedMethod] = {}

    @property
    def method_names(self) -> tuple[str, ...]:
        """The methods of the program that compute, sorted."""
        return tuple(sorted(set(self._program.method_names) - {PROVENANCE}))

    @property
    def provenance(self) -> dict[str, Any] | None:
        """Where it comes from, see `pt2q.deploy.provenance`; None if it says nothing."""
        if PROVENANCE not in self._program.method_names:
            return None
        return read_provenance({KEY: self.method(PROVENANCE)()[0]})

    @property
    def algorithms(self) -> dict[str, Any] | None:
        """What algorithms did to it: names, settings, versions, layers changed; None if nothing."""
        return (self.provenance or {}).get("algorithms")

    def method(self, name: str = "forward") -> LoadedMethod:
        """A method by name, safe to keep when the program object is gone.

        Raises:
            LoweringError: there is no such method, or it needs a kernel the runtime lacks.
        """
        if name not in self._program.method_names:
            raise LoweringError(f"no method {name!r}; the program has {list(self.method_names)}")
        if not self._methods:
            self._load_beside(name)
        if name not in self._methods:
            self._methods[name] = self._loaded(name)
        return self._methods[name]

    def _load_beside(self, name: str) -> None:
        """Load the other methods before one runs: loading sets what they share to its start."""
        for other in self.method_names:
            if other != name:
                with suppress(LoweringError):  # said when somebody asks for it
                    self._methods[other] = self._loaded(other)

    def _loaded(self, name: str) -> LoadedMethod:
        return LoadedMethod(self._runtime, self._data, self._program, name)

    def __call__(self, *inputs: Any) -> tuple[Any, ...]:
        """Run `forward`; see `LoadedMethod`."""
        return self.method()(*inputs)


def load(source: str | PathLike[str] | bytes) -> LoadedProgram:
    """Load a `.pte` into the ExecuTorch runtime.

    Args:
        source: a path, or the bytes themselves. A file is read whole, so it may be replaced or
            deleted afterwards.

    Raises:
        DataError: the file is missing, truncated or no ExecuTorch program.
        MissingDependencyError: executorch is not installed.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return LoadedProgram(bytes(source))
    try:
        data = Path(source).read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {source}: {error.strerror or error}") from error
    try:
        return LoadedProgram(data)
    except DataError as error:
        raise DataError(f"{source}: {error}") from error


def _runtime() -> Any:
    with captured_stderr():
        (runtime,) = optional_modules("executorch.runtime", extra="executorch")
        return runtime.Runtime.get()


def _load_native(runtime: Any, data: bytes) -> Any:
    """The native program, or the error: it is raised once the captured log is complete."""
    try:
        return runtime.load_program(data)
    except RuntimeError as error:
        return error
