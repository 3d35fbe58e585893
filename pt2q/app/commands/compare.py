"""`pt2q compare`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from pt2q.app.console import console, track
from pt2q.app.options import Asked, JsonFile, MetricFunction, Worst

HELP = (
    "Say, operator by operator, where a quantized model departs from float.\n\n"
    "It is quantized as by 'pt2q quantize', which see for the files; nothing is lowered but "
    "with --in-runtime. Local: what an operator adds by itself. Total: with all that comes before "
    "it.\n\n"
    "With --file, what a finished .pte, .onnx or package computes in its own runtime is compared "
    "instead, on all of the data. Of a .pte of several methods, the model is given as METHOD=FILE."
)
InRuntime = Annotated[
    bool,
    typer.Option(
        "--in-runtime", help="Lower it, and compare the values inside the runtime instead."
    ),
]
FinishedFile = Annotated[
    Path | None,
    typer.Option("--file", help="Compare this finished file, which was made from the model."),
]


def compare(
    asked: Asked,
    worst: Worst = None,
    metric: MetricFunction = None,
    in_runtime: InRuntime = False,
    file: FinishedFile = None,
    json: JsonFile = None,
) -> None:
    """Say, operator by operator, where a quantized model departs from float."""
    from pt2q.app.chosen import all_of, chosen_recipe, data_of
    from pt2q.app.compare_job import Compared, run_comparison, run_in_runtime
    from pt2q.app.file_comparison import check_file, compare_file, measure_file
    from pt2q.app.metrics import read_metric
    from pt2q.app.program_file import read_program
    from pt2q.app.written import write_json

    asked, method = _method(asked, file)
    chosen = chosen_recipe(asked, {"--json": json}, metric)
    program = read_program(asked.model)
    found: Compared[Any]
    if file is not None:
        check_file(file, {"--json": json})
        batches = all_of(program, asked, chosen)
        which: dict[str, Any] = {"backend": asked.backend, "method": method}
        report = compare_file(program, file, batches, track, inside=in_runtime, **which)
        judge = read_metric(metric, batches.numbers)
        found = Compared(report, measure_file(judge, program, file, batches, **which))
    else:
        data = data_of(program, asked, chosen)
        judge = read_metric(metric, data.held_out.numbers)
        given = program, data, chosen, track, judge
        found = run_in_runtime(*given) if in_runtime else run_comparison(*given)
    shown = found.report if worst is None else found.report.worst(worst)
    print(shown.text(console().width))
    if found.metric is not None:
        print(f"metric: {found.metric}")
    write_json(json, found.report, metric=found.metric and found.metric.to_dict())


def _method(asked: Asked, file: Path | None) -> tuple[Asked, str | None]:
    """The model, and the method of the file that was made from it, where one is named."""
    from pt2q.app.programs.naming import are_named, by_name

    if file is None or not are_named([asked.model]):
        return asked, None
    ((name, path),) = by_name("model", [asked.model]).items()
    return replace(asked, model=path), name
