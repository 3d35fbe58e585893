"""`pt2q inspect`."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pt2q.app.console import console
from pt2q.app.options import Asked, BackendName, Dynamic, JsonFile, PerTensor, RecipeFile
from pt2q.errors import DataError, RecipeError

if TYPE_CHECKING:
    from pt2q.quantizers import TableQuantizer

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


def inspect(
    model: AnyFile,
    backend: BackendName = None,
    recipe: RecipeFile = None,
    per_tensor: PerTensor = False,
    dynamic: Dynamic = False,
    json: JsonFile = None,
) -> None:
    """Say what a model is made of, and what each backend would quantize of it."""
    from pt2q import debug
    from pt2q.account import Account
    from pt2q.app.program_file import read_program
    from pt2q.app.written import write_json
    from pt2q.deploy.describing import describe
    from pt2q.deploy.exported import provenance_in
    from pt2q.deploy.provenance import provenance_lines
    from pt2q.tables import text_table

    asked = Asked(
        model=model, backend=backend, recipe=recipe, per_tensor=per_tensor, dynamic=dynamic
    )
    quantizers, said = _quantizers(asked, json), None
    found: Account | None = describe(model) if model.is_file() else None
    if found is not None and (backend, recipe) != (None, None):
        raise DataError(f"{model} is finished: nothing is quantized of it, leave --backend out")
    if found is None:
        found = debug.inspect(read_program(model), quantizers)
        said = provenance_in(model)
    print(found.text(console().width))
    if said is not None:
        lines = provenance_lines(said)
        print(f"\n{text_table(('what', 'of the file'), lines, width=console().width)}")
    write_json(json, found, provenance=said)


def _quantizers(asked: Asked, json: Path | None) -> dict[str, TableQuantizer]:
    """That of the backend asked for, or of all that do what is asked."""
    from pt2q.app.chosen import chosen_recipe
    from pt2q.deploy.registry import BACKENDS

    written = {"--json": json}
    if asked.backend is not None or asked.recipe is not None:
        chosen = chosen_recipe(asked, written)
        return {chosen.backend: chosen.quantizer()}
    found = {}
    for name in BACKENDS:
        with suppress(RecipeError):  # it has no such mode
            found[name] = chosen_recipe(replace(asked, backend=name), written).quantizer()
    return found
