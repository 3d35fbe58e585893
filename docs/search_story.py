"""Make the pictures of docs/search_story.md by its own snippets: `python docs/search_story.py`.

It takes matplotlib, and Chromium for the two of the report.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

DOCS = Path(__file__).resolve().parent
SNIPPET = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
BROWSERS = "chromium", "chromium-browser", "google-chrome"
SIZE = "1200,1000"


def names_of(page: Path) -> dict[str, Any]:
    """What the snippets of a page define."""
    names: dict[str, Any] = {"__name__": "snippet"}
    for match in SNIPPET.finditer(page.read_text()):
        exec(compile(match[1], str(page), "exec"), names)
    return names


def draw_trials(names: dict[str, Any], path: Path) -> None:
    """What the search measured, beside the first and last layer in float."""
    found, usual, usual_cost = names["found"], names["usual"], names["usual_cost"]
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for number, trial in enumerate(found.trials, 1):
        at = 100 * trial.cost / found.whole, trial.value
        axes.scatter(*at, color="#1a9850" if trial.met else "#d73027", zorder=3)
        axes.annotate(f" {number}", at)
    axes.scatter(100 * usual_cost / found.whole, usual, marker="s", color="#4c78a8", zorder=3)
    here = 100 * usual_cost / found.whole, usual
    axes.annotate("first and last in float", here, (8, 6), textcoords="offset points")
    axes.axhline(usual, color="#808890", linewidth=1, linestyle="--")
    axes.set_xlabel("cost, % of float (multiply-accumulates times bits)")
    axes.set_ylabel("output, SQNR in dB")
    axes.margins(x=0.3, y=0.15)
    axes.grid(alpha=0.25)
    plt.rcParams["svg.hashsalt"] = "pt2q"
    figure.savefig(path, metadata={"Date": None})


def photograph(page: str, path: Path, *options: str) -> None:
    """A report as a browser shows it."""
    browser = next(filter(None, map(shutil.which, BROWSERS)))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.html"
        file.write_text(page)
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += ["--virtual-time-budget=8000", f"--window-size={SIZE}", *options]
        subprocess.run(
            [*command, f"--screenshot={path}", file.as_uri()], check=True, capture_output=True
        )


def main() -> None:
    """All three."""
    names = names_of(DOCS / "search_story.md")
    draw_trials(names, DOCS / "search_trials.svg")
    photograph(names["page"], DOCS / "report_light.png")
    photograph(names["page"], DOCS / "report_dark.png", "--force-dark-mode")


if __name__ == "__main__":
    main()
