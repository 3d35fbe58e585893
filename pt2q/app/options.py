"""The options that commands share, each defined once; nothing of torch is imported for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any

import typer

from pt2q.app.function_file import file_of
from pt2q.offers import BACKEND_GROUP, BACKENDS, DEFAULT_BACKEND
from pt2q.registry import Registry

# Only their names: what packages offer is loaded when a command is run.
NAMES = ", ".join(Registry("backend", BACKEND_GROUP, BACKENDS, lambda _, found: found))

ModelFile = Annotated[
    Path, typer.Argument(help="A float model, as torch.export.save wrote it.", show_default=False)
]
_CALIBRATION = typer.Option(
    "--calibration",
    help="Inputs of the model: .npz, .pt, a folder of them or of Hugging Face datasets', or "
    "FILE.py:FUNCTION.",
)
CalibrationFile = Annotated[Path, _CALIBRATION]
CalibrationFiles = Annotated[list[Path], _CALIBRATION]
BackendName = Annotated[
    str | None,
    typer.Option(
        "--backend",
        help=f"What runs the result: {NAMES}; if not given the recipe's, or else "
        f"{DEFAULT_BACKEND}.",
    ),
]
RecipeFile = Annotated[
    Path | None,
    typer.Option("--recipe", help="A TOML file that says how; see: pt2q recipe init"),
]
PerTensor = Annotated[
    bool, typer.Option("--per-tensor", help="One scale per weight, not one per channel.")
]
Dynamic = Annotated[bool, typer.Option("--dynamic", help="Measure activation ranges at run time.")]
Limit = Annotated[
    int | None, typer.Option("--limit", min=1, help="Calibrate on at most so many batches.")
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", min=0, help="Of what is held out, and of what algorithms draw."),
]
_HELD_OUT = typer.Option(
    "--held-out", help="Inputs to compare on, in the place of a tenth of the others."
)
HeldOut = Annotated[Path | None, _HELD_OUT]
HeldOutFiles = Annotated[list[Path] | None, _HELD_OUT]
JsonFile = Annotated[
    Path | None, typer.Option("--json", help="Write all that was found here, too.")
]
MetricFunction = Annotated[
    str | None,
    typer.Option(
        "--metric",
        help="FILE.py:FUNCTION judges: given the results, batch by batch, and the positions of the "
        "batches in the data, it returns a number, larger for better.",
    ),
]
BatchCount = Annotated[
    int,
    typer.Option("--batches", min=1, help="Measure on so many batches, the held-out ones first."),
]
Worst = Annotated[int | None, typer.Option("--worst", min=1, help="Print so many rows.")]


Processes = Annotated[
    int,
    typer.Option(
        "--processes", min=1, help="Measure in so many processes; figures are those of one."
    ),
]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What most commands are given: a model, data, and how it is quantized.

    Attributes:
        model, calibration, backend, recipe, per_tensor, dynamic, limit, seed, held_out: the options
            of their names.
    """

    model: Path
    calibration: Path | None = None
    backend: str | None = None
    recipe: Path | None = None
    per_tensor: bool = False
    dynamic: bool = False
    limit: int | None = None
    seed: int | None = None
    held_out: Path | None = None

    @property
    def files(self) -> dict[str, Path | None]:
        """What the command reads, by what it is to it."""
        return {
            "the model": self.model,
            "--calibration": file_of(self.calibration),
            "--recipe": self.recipe,
            "--held-out": file_of(self.held_out),
        }


_OPTIONS: dict[str, Any] = {
    "model": ModelFile,
    "calibration": CalibrationFile,
    "backend": BackendName,
    "recipe": RecipeFile,
    "per_tensor": PerTensor,
    "dynamic": Dynamic,
    "limit": Limit,
    "seed": Seed,
    "held_out": HeldOut,
}
_GIVEN = ("model", "calibration")
"""Those that a command cannot do without."""


def asking(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `Asked`, and it what was given, before its own.

    Args:
        command: its first argument is an `Asked`. An option of its own takes the place of the
            shared one of its name.
    """
    _, *own = signature(command, eval_str=True).parameters.values()
    names = [name for name in _OPTIONS if name not in {each.name for each in own}]
    shared = [_parameter(name) for name in names]
    own = [each.replace(kind=Parameter.KEYWORD_ONLY) for each in own]
    needed = [each for each in (*shared, *own) if each.default is Parameter.empty]
    others = [each for each in (*shared, *own) if each.default is not Parameter.empty]

    def wrapped(**given: Any) -> None:
        command(Asked(**{name: given.pop(name) for name in names}), **given)

    found = Signature([*needed, *others])
    wrapped.__signature__ = found  # type: ignore[attr-defined]
    wrapped.__annotations__ = {name: each.annotation for name, each in found.parameters.items()}
    wrapped.__name__, wrapped.__doc__ = command.__name__, command.__doc__
    return wrapped


def _parameter(name: str) -> Parameter:
    defaults = {field.name: field.default for field in fields(Asked)}
    default = Parameter.empty if name in _GIVEN else defaults[name]
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=_OPTIONS[name])
