"""The page's charts, by plotly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pt2q.debug.sensitivities.result import Sensitivity
from pt2q.optional import optional_modules

SHOWN = 30
"""Bars in a chart."""
_PLAIN = {
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "font": {"color": "#808890", "size": 12},
    "margin": {"l": 190, "r": 20, "t": 30, "b": 40},
    "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
    "showlegend": True,
}
_GRID = "rgba(128, 136, 144, 0.25)"  # seen on white and on black
_COLOURS = {"weight": "#4c78a8", "activation": "#f58518", "layer": "#54a24b"}


def script() -> str:
    """plotly's own script, to be written into the page."""
    (offline,) = optional_modules("plotly.offline", extra="report")
    return str(offline.get_plotlyjs())


def sensitivity_chart(found: Sensitivity) -> str:
    """What the output keeps when a group alone is quantized, the worst first, as HTML.

    Args:
        found: the rows.
    """
    (graph,) = optional_modules("plotly.graph_objects", extra="report")
    rows = [row for row in found.groups if row.alone < float("inf")][:SHOWN]
    figure = graph.Figure(layout={**_layout(len(rows), found.measure), "barmode": "overlay"})
    for kind in ("weight", "activation"):
        mine = [(place, row) for place, row in enumerate(rows) if row.kind == kind]
        figure.add_bar(
            x=[row.alone for _, row in mine],
            y=[place for place, _ in mine],
            hovertext=[", ".join(row.nodes) for _, row in mine],
            name=kind,
            orientation="h",
            marker_color=_COLOURS[kind],
        )
    _named(figure, [row.nodes[0] for row in rows])
    return _html(figure, "sensitivity-chart")


def size_chart(sizes: Mapping[str, tuple[float, float]]) -> str:
    """What the weights of each module take, in float and quantized, as HTML.

    Args:
        sizes: bytes by module.
    """
    (graph,) = optional_modules("plotly.graph_objects", extra="report")
    ordered = sorted(sizes.items(), key=lambda item: -item[1][0])
    shown, rest = ordered[:SHOWN], ordered[SHOWN:]
    if rest:
        both = tuple(sum(pair[i] for _, pair in rest) for i in (0, 1))
        shown.append((f"{len(rest)} more", (both[0], both[1])))
    names = [name for name, _ in shown]
    figure = graph.Figure(layout={**_layout(len(shown), "KB"), "barmode": "group"})
    for index, label, colour in ((1, "quantized", "#4c78a8"), (0, "float", "#c4cad2")):
        values = [pair[index] / 1e3 for _, pair in shown]
        figure.add_bar(
            x=values, y=list(range(len(names))), name=label, orientation="h", marker_color=colour
        )
    _named(figure, names)
    return _html(figure, "size-chart")


def _layout(bars: int, title: str) -> dict[str, Any]:
    axis = {"title": {"text": title}, "gridcolor": _GRID, "zerolinecolor": _GRID}
    return {**_PLAIN, "height": 90 + 22 * max(bars, 3), "xaxis": axis}


def _named(figure: Any, names: Sequence[str]) -> None:
    """Names at the bars, the first at the top; long ones are cut, which may make them alike."""
    places = list(range(len(names)))
    figure.update_yaxes(tickvals=places, ticktext=list(map(_short, names)), autorange="reversed")


def _short(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:12]}...{name[-13:]}"


def _html(figure: Any, name: str) -> str:
    return str(
        figure.to_html(
            full_html=False,
            include_plotlyjs=False,
            div_id=name,
            config={"displayModeBar": False, "responsive": True},
        )
    )
