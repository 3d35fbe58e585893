"""A graph for Graphviz, grouped by module."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch.export import ExportedProgram
from torch.fx import GraphModule

from pt2q.debug.drawing.colours import colour
from pt2q.debug.drawing.picture import BORDER, OPERATOR, Box, picture
from pt2q.errors import MissingDependencyError
from pt2q.files import write_bytes
from pt2q.optional import optional_modules

_PROGRAM = (
    "drawing an image needs Graphviz's program dot, which pip does not install: apt install "
    "graphviz, brew install graphviz, or write a .dot file and draw it elsewhere"
)


def draw(
    model: ExportedProgram | GraphModule,
    values: Mapping[str, float] | None = None,
    *,
    name: str = "model",
) -> str:
    """The text of a graph for Graphviz, its nodes grouped by module.

    Args:
        model: float, prepared or converted.
        values: by name of the node, a signal to noise ratio in dB, which colours it.
        name: of the graph.

    Raises:
        MissingDependencyError: the package ``graphviz`` is not installed.
        NotExportedError: the model is no program.
    """
    return str(_digraph(picture(model, values), name).source)


def save_drawing(
    model: ExportedProgram | GraphModule,
    path: str | Path,
    values: Mapping[str, float] | None = None,
) -> Path:
    """Write a graph as an image, or as text for Graphviz.

    Args:
        model, values: see `draw`.
        path: its suffix says the form: ``.svg``, ``.png``, ``.pdf``, or ``.dot`` for the text.

    Raises:
        MissingDependencyError: the package ``graphviz``, or for an image Graphviz's program, is not
            installed.
        SaveError: the file cannot be written.
    """
    path = Path(path)
    graph = _digraph(picture(model, values), path.stem)
    if path.suffix in (".dot", ".gv"):
        return write_bytes(path, str(graph.source).encode())
    return write_bytes(path, _rendered(graph, path.suffix.removeprefix(".")))


def _rendered(graph: Any, form: str) -> bytes:
    (graphviz,) = optional_modules("graphviz", extra="report")
    try:
        return bytes(graph.pipe(format=form))
    except graphviz.ExecutableNotFound as error:
        raise MissingDependencyError(_PROGRAM) from error


def _digraph(boxes: Iterable[Box], name: str) -> Any:
    (graphviz,) = optional_modules("graphviz", extra="report")
    graph = graphviz.Digraph(
        name, graph_attr={"rankdir": "TB", "fontname": "sans-serif", "color": "#999999"}
    )
    graph.attr("node", shape="box", style="filled,rounded", fontname="sans-serif", fontsize="11")
    drawn = list(boxes)
    _fill(graph, _tree(drawn), "")
    for box in drawn:
        for read in box.reads:
            graph.edge(_quoted(read), _quoted(box.name))
    return graph


def _quoted(name: str) -> str:
    """A name without what Graphviz reads as a port."""
    return name.replace(":", "_")


def _tree(boxes: Iterable[Box]) -> dict[str, Any]:
    """Boxes by the components of their module's path; those of a module itself under ""."""
    tree: dict[str, Any] = {"": []}
    for box in boxes:
        at = tree
        for part in filter(None, (box.body.rstrip("."), *box.module.split("."))):
            at = at.setdefault(part, {"": []})
        at[""].append(box)
    return tree


def _fill(graph: Any, tree: Mapping[str, Any], path: str) -> None:
    for box in tree[""]:
        graph.node(_quoted(box.name), _label(box), **_style(box))
    for part, below in tree.items():
        if part:
            inner = f"{path}.{part}" if path else part
            with graph.subgraph(name=f"cluster_{inner}", graph_attr={"label": part}) as group:
                _fill(group, below, inner)


def _label(box: Box) -> str:
    lines = [box.label] if box.kind == BORDER else [box.name, box.label]
    if box.value is not None:
        lines.append(f"{box.value:.1f} dB")
    return "\\n".join(dict.fromkeys(lines))


def _style(box: Box) -> dict[str, str]:
    if box.kind == BORDER:
        return {"shape": "ellipse", "fillcolor": "#dfe7f5", "fontsize": "9", "height": "0.2"}
    plain = "#c9ddf7" if box.quantized else "#eeeeee"
    fill = plain if box.value is None else colour(box.value)
    line = "#1f4e9c" if box.quantized and box.kind == OPERATOR else "#888888"
    return {"fillcolor": fill, "color": line, "penwidth": "2" if box.quantized else "1"}
