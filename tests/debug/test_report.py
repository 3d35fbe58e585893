"""The page: what is in it, and that it works in a browser where there is one."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from support.comparing import ConvBn, build
from support.flow import calibrated
from torch import Tensor, nn

from pt2q import debug
from pt2q.debug.drawing.picture import picture
from pt2q.debug.report.histograms import BINS, histograms
from pt2q.debug.report.layout import HEIGHT, WIDTH, laid_out
from pt2q.errors import MissingDependencyError
from pt2q.ir.module import QuantGraphModule
from pt2q.quantizers import XNNPACKQuantizer

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
Case = tuple[torch.export.ExportedProgram, QuantGraphModule, list[Tensor], str]


@pytest.fixture(scope="module")
def case() -> Case:
    _, program, inputs = build(ConvBn, 2, 3, 8, 8)
    quantizer = XNNPACKQuantizer()
    prepared = calibrated(program, quantizer, *((x,) for x in inputs))
    page = debug.report_page(
        program, prepared, inputs[:2], decisions=quantizer.report(), title="a <small> net"
    )
    return program, prepared, inputs, page


class Reader(HTMLParser):
    """Names of elements, and addresses that a browser would fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            if name in ("src", "srcset", "data", "poster") or (tag == "link" and name == "href"):
                self.fetched.append(str(value))
            if tag == "a" and name == "href":
                self.links.append(str(value))


def data(page: str, name: str) -> Any:
    found = re.search(rf"\b{name} = (.*?)(?:, \w+ = |;\n)", page)
    assert found is not None
    return json.loads(found[1])


def test_the_page_holds_everything(case: Case) -> None:
    page = case[-1]
    reader = Reader(page)
    assert len(page) < 8_000_000
    assert "<h1>a &lt;small&gt; net</h1>" in page
    assert [address for address in reader.fetched if not address.startswith("data:")] == []
    assert len(reader.ids) == len(set(reader.ids))
    assert {"sensitivity-chart", "size-chart", "graph", "table", "layers", "values"} <= set(
        reader.ids
    )
    assert all(link[1:] in reader.ids for link in reader.links)
    rows = data(page, "rows")
    assert {"conv2d + batch_norm", "linear", "linear_1", "linear_2"} <= {
        row["node"] for row in rows
    }
    nodes = {f"node-{row['node'].split(' + ')[-1]}" for row in rows} - {"node-batch_norm"}
    assert nodes <= set(reader.ids)
    linear = next(row for row in rows if row["node"] == "linear")
    assert linear["module"] == "twice" and "int8" in linear["how"] and linear["alone"] > 0
    assert "twice_weight" in linear["tensors"]


def test_histograms_count_every_number(case: Case) -> None:
    _, prepared, inputs, _ = case
    found = histograms(prepared, inputs)
    assert int(found["x"].counts.sum()) == sum(x.numel() for x in inputs)
    weight = prepared.get_parameter("twice.weight")
    assert int(found["twice_weight"].counts.sum()) == weight.numel()
    assert found["x"].counts.numel() == BINS
    low, high = found["x"].range or (0.0, 0.0)
    observer = next(
        prepared.get_submodule(str(n.target)) for n in prepared.graph.nodes
        if n.op == "call_module" and n.args[0].name == "x"
    )  # fmt: skip
    scale, zero = observer.calculate_qparams()
    assert low == pytest.approx(float((-128 - zero) * scale))
    assert high == pytest.approx(float((127 - zero) * scale))


def test_boxes_do_not_overlap_and_stand_below_what_they_read(case: Case) -> None:
    layout = laid_out(picture(case[1]))
    places = [(p.x, p.y) for p in layout.boxes]
    for one in range(len(places)):
        for other in range(one):
            (a, b), (c, d) = places[one], places[other]
            assert abs(a - c) >= WIDTH or abs(b - d) >= HEIGHT
    assert all(top <= below for p in layout.boxes for _, top, _, below in p.reads)
    assert all(x + WIDTH <= layout.width and y + HEIGHT <= layout.height for x, y in places)


def test_a_missing_package_is_named(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    program, prepared, inputs, _ = case
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(MissingDependencyError, match=r"pt2q\[report\]"):
        debug.report_page(program, prepared, inputs)


# What a user does, and what is seen then, written into the page where the dump shows it.
ACTIONS = """
<script>
const seen = {errors: window.seenErrors};
const nodes = () => [...document.querySelectorAll("#table tbody tr td:first-child")]
  .map((cell) => cell.textContent);
const header = (key) => document.querySelector(`#table th[data-key=${key}]`);
seen.first = nodes();
header("total").click(); seen.up = nodes();
header("total").click(); seen.down = nodes();
const search = document.querySelector("#search");
search.value = "aten.linear"; search.dispatchEvent(new Event("input")); seen.found = nodes();
search.value = ""; search.dispatchEvent(new Event("input")); seen.all = nodes().length;
[...document.querySelectorAll("#table a")].find((a) => a.textContent === "linear_1").click();
seen.marked = document.querySelector("#graph .at").id;
seen.row = document.querySelector("#table .at a").textContent;
seen.shown = [...document.querySelectorAll("#chosen .chart")].map((c) => c.dataset.tensor);
document.getElementById("node-linear_2").dispatchEvent(new Event("click"));
seen.back = document.querySelector("#table .at a").textContent;
document.querySelector("#theme").click(); seen.theme = document.documentElement.dataset.theme;
setTimeout(() => {
  seen.plots = document.querySelectorAll(".js-plotly-plot svg.main-svg").length;
  seen.empty = [...document.querySelectorAll(".plot, #sensitivity-chart, #size-chart")]
    .filter((plot) => !plot.querySelector("svg .point, svg .bars path, svg .trace")).length;
  seen.cut = [...document.querySelectorAll(".js-plotly-plot")].filter((plot) =>
    plot.querySelector("svg.main-svg").clientWidth > plot.parentElement.clientWidth + 1).length;
  seen.resources = performance.getEntriesByType("resource").map((entry) => entry.name);
  const out = document.createElement("pre");
  out.id = "seen"; out.textContent = JSON.stringify(seen); document.body.append(out);
}, 1500);
</script>
"""
CATCH = """<script>window.seenErrors = [];
window.addEventListener("error", (e) => window.seenErrors.push(String(e.message)));
console.error = (...words) => window.seenErrors.push(words.join(" "));</script>"""


def opened(page: str, folder: Path) -> dict[str, Any]:
    """What is seen in a browser that reaches no network."""
    assert BROWSER is not None
    path = folder / "page.html"
    changed = page.replace("<head>", f"<head>{CATCH}", 1).replace("</body>", f"{ACTIONS}</body>")
    path.write_text(changed)
    command = [
        *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=8000"),
        *("--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'profile'}"),
        *("--dump-dom", path.as_uri()),
    ]
    dumped = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search(r'<pre id="seen">(.*?)</pre>', dumped)
    assert found is not None, dumped[-2000:]
    seen: dict[str, Any] = json.loads(html.unescape(found[1]))
    return seen


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")
def test_the_page_works_in_a_browser(case: Case, tmp_path: Path) -> None:
    seen = opened(case[3], tmp_path)
    rows = {row["node"]: row for row in data(case[3], "rows")}
    assert seen["errors"] == [] and seen["resources"] == []
    known = [node for node in rows if rows[node]["total"] is not None]
    ordered = sorted(known, key=lambda node: rows[node]["total"])
    totals = [rows[node]["total"] for node in seen["up"][: len(known)]]
    assert totals == [rows[node]["total"] for node in ordered]
    assert [rows[n]["total"] for n in seen["down"][: len(known)]] == totals[::-1]
    assert sorted(seen["found"]) == ["linear", "linear_1", "linear_2"]
    assert seen["all"] == len(rows)
    assert (seen["marked"], seen["row"], seen["back"]) == ("node-linear_1", "linear_1", "linear_2")
    assert set(seen["shown"]) <= set(rows["linear_1"]["tensors"]) and seen["shown"]
    assert seen["plots"] >= 4 and seen["empty"] == 0 and seen["cut"] == 0
    assert seen["theme"] in ("light", "dark")


class Deep(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x).relu() * 0.1
        return x


@pytest.mark.slow
def test_a_page_of_2000_nodes_is_below_8_mb(tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs = [(torch.randn(2, 8),) for _ in range(2)]
    program = torch.export.export(Deep(500).eval(), inputs[0])
    prepared = calibrated(program, XNNPACKQuantizer(), *inputs)
    page = debug.report_page(program, prepared, inputs[:1])
    assert sum(node.op == "call_function" for node in program.graph.nodes) >= 2000
    assert len(page.encode()) < 8_000_000
    if BROWSER is not None:
        assert opened(page, tmp_path)["errors"] == []
