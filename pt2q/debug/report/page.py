"""The page: what is measured for it, and how it is put together."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule

from pt2q.algorithms.engine import Program
from pt2q.algorithms.task import Progress
from pt2q.debug.comparison.compare import compare
from pt2q.debug.comparison.comparison import Comparison
from pt2q.debug.drawing.colours import colour
from pt2q.debug.drawing.overlay import errors_by_node
from pt2q.debug.drawing.picture import picture
from pt2q.debug.report import figures
from pt2q.debug.report.histograms import Histogram, histograms
from pt2q.debug.report.layout import HEIGHT, WIDTH, Layout, laid_out
from pt2q.debug.report.rows import PageRow, page_rows
from pt2q.debug.sensitivities.result import Sensitivity
from pt2q.debug.sensitivities.sensitivity import sensitivity
from pt2q.debug.sensitivities.subjects import rounded_tensors
from pt2q.flow import convert_pt2e
from pt2q.ir.module import QuantGraphModule
from pt2q.optional import optional_modules
from pt2q.quantizers import Report

MEASURED = 200
"""Operators up to which the sensitivity of all is measured; of more, that of the worst half."""
TEMPLATE = Path(__file__).with_name("page.html.j2")


def report_page(
    model: ExportedProgram | GraphModule,
    prepared: QuantGraphModule,
    batches: Sequence[Any],
    *,
    decisions: Report | None = None,
    title: str = "model",
    passes: float = 25.0,
    progress: Progress | None = None,
) -> str:
    """All that is known of a quantized model's accuracy, as one page that fetches nothing.

    A summary; a table of the operators that can be sorted and searched; histograms of their tensors
    with the ranges chosen for them; what each tensor costs at the output; sizes; and the graph.

    Args:
        model: the float model.
        prepared: made of it, calibrated; it is not changed.
        batches: to measure on, best not those of calibration.
        decisions: what the quantizer decided, ``quantizer.report()``.
        title: of the page.
        passes: bounds what sensitivity takes, see there.
        progress: is told where the measurement stands.

    Returns:
        The page as HTML.

    Raises:
        MissingDependencyError: the extra ``report`` is not installed.
        DataError, ComparisonError: the batches are no calls of the model.
    """
    (jinja,) = optional_modules("jinja2", extra="report")
    plotly = figures.script()
    weights = _weights(prepared)
    comparison = compare(model, convert_pt2e(prepared), list(batches))
    felt = sensitivity(
        prepared,
        batches,
        by_layer=False,
        nodes=_suspects(comparison, weights),
        passes=passes,
        progress=progress,
    )
    seen = histograms(prepared, batches[:2])
    rows = page_rows(comparison, decisions or Report(), felt, weights)
    errors = errors_by_node(comparison)
    graph = laid_out(picture(prepared, errors))
    template = jinja.Environment(autoescape=True).from_string(TEMPLATE.read_text())
    return str(
        template.render(
            title=title,
            summary=_summary(prepared, comparison, felt, decisions),
            rows=_json([row.to_dict() for row in rows]),
            histograms=_json({name: h.to_dict() for name, h in seen.items()}),
            worst=_json(_worst(rows, seen)),
            sensitivity=figures.sensitivity_chart(felt),
            sizes=figures.size_chart(_sizes(prepared)),
            graph=_graph(graph, {row.node for row in decisions.quantized} if decisions else set()),
            notes=[*comparison.notes, *map(str, comparison.unmatched)],
            plotly=plotly,
        )
    )


def _suspects(comparison: Comparison, weights: Mapping[str, Sequence[str]]) -> set[str] | None:
    """The tensors of the operators with the worst local errors; None where all can be measured."""
    if len(comparison.rows) <= MEASURED:
        return None
    worst = comparison.worst(MEASURED // 2).rows
    names = {name for row in worst for name in (*row.includes, row.node)}
    return names | {weight for name in names for weight in weights.get(name, ())}


def _json(value: Any) -> str:
    """JSON that can stand inside of a script element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _weights(prepared: QuantGraphModule) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for call in rounded_tensors(Program(prepared)):
        if call.is_weight:
            for user in call.node.users:
                found.setdefault(call.path + user.name, []).append(call.path + call.source.name)
    return found


def _sizes(prepared: QuantGraphModule) -> dict[str, tuple[float, float]]:
    """Bytes of the quantized weights by module, before and after."""
    found: dict[str, tuple[float, float]] = {}
    for call in rounded_tensors(Program(prepared)):
        if not call.is_weight or call.source.op != "get_attr":
            continue
        value = call.source.meta.get("val")
        numel = value.numel() if isinstance(value, torch.Tensor) else 0
        count = getattr(call.observer, "quant_max", 127) - getattr(call.observer, "quant_min", -128)
        bits = 4 if count < 16 else 8 if count < 256 else 16
        name = str(call.source.target).rpartition(".")[0] or str(call.source.target)
        one, other = found.get(name, (0.0, 0.0))
        found[name] = one + 4.0 * numel, other + numel * bits / 8
    return found


def _summary(
    prepared: QuantGraphModule,
    comparison: Comparison,
    felt: Sensitivity,
    decisions: Report | None,
) -> list[tuple[str, str]]:
    sizes = _sizes(prepared).values()
    whole = [sum(pair[i] for pair in sizes) for i in (0, 1)]
    first = felt.groups[0] if felt.groups else None
    lines = [("output", f"{felt.whole:.1f} dB ({felt.measure})")]
    if decisions is not None and len(decisions):
        lines.append(("quantized", f"{len(decisions.quantized)} of {len(decisions)} operators"))
    if first is not None:
        words = f"{first.kind} {first.nodes[0]}: {first.alone:.1f} dB alone"
        lines.append(("what the output feels most", words))
    lines.append(("quantized weights", " to ".join(map(_bytes, whole))))
    lines.append(("measured on", f"{comparison.batches} batch(es)"))
    return lines


def _bytes(number: float) -> str:
    return f"{number / 1e6:.2f} MB" if number >= 1e5 else f"{number / 1e3:.1f} KB"


def _worst(rows: Iterable[PageRow], seen: Mapping[str, Histogram]) -> list[str]:
    """The tensors whose histograms are drawn at once: those of the worst operators."""
    ordered = sorted(rows, key=lambda row: 1e9 if row.alone is None else row.alone)
    names = [name for row in ordered for name in row.tensors if name in seen]
    return list(dict.fromkeys(names))[:6]


def _graph(layout: Layout, quantized: set[str]) -> dict[str, Any]:
    """What the template draws; what is fused with a quantized operator is so, too."""
    boxes = [
        {
            "name": placed.box.name,
            "label": placed.box.label,
            "module": placed.box.module,
            "x": round(placed.x, 1),
            "y": round(placed.y, 1),
            "fill": colour(placed.box.value),
            "value": "" if placed.box.value is None else f"{placed.box.value:.1f} dB",
            "quantized": placed.box.name in quantized or placed.box.quantized,
            "lines": [_curve(*line) for line in placed.reads],
        }
        for placed in layout.boxes
    ]
    size = {"width": layout.width + 60, "height": layout.height + 20}  # room for curves
    return {"boxes": boxes, "w": WIDTH, "h": HEIGHT, **size}


def _curve(x: float, y: float, to_x: float, to_y: float) -> str:
    """A line from box to box; one that would run behind boxes between goes around them."""
    bow = 0.9 * WIDTH if to_y - y > 2 * HEIGHT and abs(to_x - x) < WIDTH else 0.0
    points = (x, y), (x + bow, y + 18), (to_x + bow, to_y - 18), (to_x, to_y)
    (start, *curve) = (f"{a:.1f} {b:.1f}" for a, b in points)
    return f"M{start}C{' '.join(curve)}"
