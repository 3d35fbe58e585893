"""`pt2q inspect`."""

from __future__ import annotations

from pt2q import debug
from pt2q.app.calibration import read_program
from pt2q.app.console import console
from pt2q.app.options import BackendName, JsonFile, ModelFile
from pt2q.app.written import write_json
from pt2q.deploy.registry import BACKENDS
from pt2q.files import check_outputs

HELP = (
    "Say what a model is made of, and what each backend would quantize of it.\n\n"
    "There is no data needed. With --backend, every operator is listed, with the reason and the "
    "way out where it would stay in float."
)


def inspect(model: ModelFile, backend: BackendName = None, json: JsonFile = None) -> None:
    """Say what a model is made of, and what each backend would quantize of it."""
    names = tuple(BACKENDS) if backend is None else (backend,)
    quantizers = {name: BACKENDS[name].quantizer() for name in names}
    check_outputs({"--json": json}, {"the model": model})
    found = debug.inspect(read_program(model), quantizers)
    print(found.text(console().width))
    write_json(json, found)
