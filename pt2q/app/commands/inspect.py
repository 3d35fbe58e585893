"""`pt2q inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pt2q import debug
from pt2q.account import Account
from pt2q.app.console import console
from pt2q.app.options import BackendName, JsonFile
from pt2q.app.program_file import read_program
from pt2q.app.written import write_json
from pt2q.deploy.describing import describe
from pt2q.deploy.registry import BACKENDS
from pt2q.errors import DataError
from pt2q.files import check_outputs

HELP = (
    "Say what a model is made of, and what each backend would quantize of it.\n\n"
    "There is no data needed. With --backend, every operator is listed, with the reason and the "
    "way out where it would stay in float. Of a finished file: how it is called, what runs, what "
    "takes its bytes, and where it comes from; nothing of it is run."
)
AnyFile = Annotated[
    Path,
    typer.Argument(
        help="A model as torch.export.save wrote it, or a finished .pte, .onnx or .pt2 package.",
        show_default=False,
    ),
]


def inspect(model: AnyFile, backend: BackendName = None, json: JsonFile = None) -> None:
    """Say what a model is made of, and what each backend would quantize of it."""
    names = tuple(BACKENDS) if backend is None else (backend,)
    quantizers = {name: BACKENDS[name].quantizer() for name in names}
    check_outputs({"--json": json}, {"the model": model})
    found: Account | None = describe(model) if model.is_file() else None
    if found is not None and backend is not None:
        raise DataError(f"{model} is finished: nothing is quantized of it, leave --backend out")
    if found is None:
        found = debug.inspect(read_program(model), quantizers)
    print(found.text(console().width))
    write_json(json, found)
