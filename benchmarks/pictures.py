"""The pictures of docs/benchmarks.md, drawn by matplotlib from benchmarks/results/.

python benchmarks/pictures.py
"""

from __future__ import annotations

from typing import Any

import matplotlib
import measuring
from measuring import median
from overview import SIDES, read, seconds

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "pt2q"  # the same picture for the same numbers
matplotlib.rcParams["font.size"] = 9
from matplotlib import pyplot as plt  # noqa: E402

DOCS = measuring.ROOT / "docs"
COLORS = {"pt2q": "#3f51b5", "peer": "#b0b4c4", "pt2q plain": "#7986cb"}
BAR = 0.38


def bars(axes: Any, values: dict[str, dict[str, float]], unit: str) -> None:
    """Horizontal bars, one group for each name and one bar for each side.

    Args:
        axes: drawn on.
        values: of each side, by name.
        unit: written at the end of each bar.
    """
    names = list(next(iter(values.values())))
    height = 2 * BAR / len(values)
    for place, (side, by_name) in enumerate(values.items()):
        at = [i + (place - (len(values) - 1) / 2) * height for i in range(len(names))]
        drawn = axes.barh(at, list(by_name.values()), height, color=COLORS[side], label=side)
        axes.bar_label(drawn, fmt=f"%.3g{unit}", padding=2, fontsize=7)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)


def flow() -> Any:
    """Seconds of prepare and convert: logarithmic, for the peer's are many times ours."""
    results = read("pipeline")["results"]
    figure, axes = plt.subplots(figsize=(7, 0.5 * len(results) + 1), layout="constrained")
    found = {
        side: {name: seconds(result["passes"][side]) for name, result in results.items()}
        for side in SIDES
    }
    bars(axes, found, " s")
    axes.set_xscale("log")
    axes.set_xlabel("CPU seconds of prepare and convert, static int8 for XNNPACK")
    axes.margins(x=0.15)
    return figure


def steps() -> Any:
    """A calibration step and a training step, as multiples of the float model's."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.6), layout="constrained")
    calibrated = {
        name: result["passes"]["calibrate"]
        for name, result in read("pipeline")["results"].items()
        if "calibrate" in result["passes"]
    }
    bars(left, _ratios(calibrated, SIDES), "x")
    left.set_title("calibration, batch 1", fontsize=9)
    trained = {n: r["step"] for n, r in read("qat").items() if isinstance(r, dict) and "step" in r}
    bars(right, _ratios(trained, ("pt2q", "pt2q plain", "peer")), "x")
    right.set_title("a step of training", fontsize=9)
    for axes in (left, right):
        axes.axvline(1, color="black", linewidth=0.6)
        axes.margins(x=0.2)
    return figure


def _ratios(found: dict[str, Any], sides: tuple[str, ...]) -> dict[str, dict[str, float]]:
    return {
        side: {name: median(s[side]) / median(s["float"]) for name, s in found.items()}
        for side in sides
    }


def main() -> None:
    for name, picture in (("flow", flow()), ("steps", steps())):
        picture.savefig(DOCS / f"benchmarks_{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
