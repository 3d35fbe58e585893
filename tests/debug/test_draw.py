"""Pictures of graphs, and data for Model Explorer."""

from __future__ import annotations

import shutil
import sys
import xml.etree.ElementTree as ElementTree
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from support.comparing import ConvBn, build, convert
from support.control_flow_models import Cond, exported
from support.flow import calibrated

from pt2q import debug
from pt2q.debug.drawing.colours import colour
from pt2q.debug.drawing.explorer_nodes import explorer_nodes
from pt2q.debug.drawing.picture import picture
from pt2q.errors import MissingDependencyError, NotExportedError
from pt2q.ir.module import QuantGraphModule
from pt2q.quantizers import XNNPACKQuantizer

Case = tuple[torch.export.ExportedProgram, QuantGraphModule, QuantGraphModule, list[Any]]


@pytest.fixture(scope="module")
def case() -> Case:
    _, program, inputs = build(ConvBn, 2, 3, 8, 8)
    prepared = calibrated(program, XNNPACKQuantizer(), *((x,) for x in inputs))
    return program, prepared, convert(program, inputs), inputs


def test_every_operator_is_a_box_that_reads_others(case: Case) -> None:
    program, prepared, converted, _ = case
    for model in (program.module(), prepared, converted):
        boxes = {box.name: box for box in picture(model)}
        expected = [n for n in model.graph.nodes if n.op == "call_function"]
        shown = [n for n in expected if n.name in boxes]
        assert len(shown) >= len(expected) - 4  # what weights are made by is hidden
        assert all(read in boxes for box in boxes.values() for read in box.reads)
    quantized = {box.name for box in picture(prepared) if box.quantized}
    assert {"conv2d", "linear", "linear_1", "linear_2"} <= quantized
    assert not any(box.quantized for box in picture(program))
    assert len(picture(program, constants=True)) > len(picture(program))


def test_the_text_is_grouped_by_module_and_coloured(case: Case) -> None:
    program, prepared, converted, inputs = case
    errors = debug.errors_by_node(debug.compare(program, converted, inputs))
    text = debug.draw(prepared, errors)
    assert 'subgraph "cluster_conv"' in text or "subgraph cluster_conv" in text
    assert f"{errors['linear']:.1f} dB" in text and colour(errors["linear"]) in text
    assert "conv2d -> " in text
    with pytest.raises(NotExportedError, match="found str"):
        debug.draw("model")  # type: ignore[arg-type]


def test_bodies_of_control_flow_are_groups() -> None:
    assert "cluster_true_graph_0" in debug.draw(exported(Cond))


def test_files(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = debug.save_drawing(case[1], tmp_path / "graph.dot")
    assert path.read_text().startswith("digraph")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match="apt install"):
        debug.save_drawing(case[1], tmp_path / "graph.svg")
    assert not (tmp_path / "graph.svg").exists()
    monkeypatch.setitem(sys.modules, "graphviz", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "pt2q\[report\]"'):
        debug.draw(case[1])


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz's program is not installed")
def test_an_image_has_every_box(case: Case, tmp_path: Path) -> None:
    path = debug.save_drawing(case[1], tmp_path / "graph.svg")
    root = ElementTree.parse(path).getroot()
    titles = {t.text for t in root.iter("{http://www.w3.org/2000/svg}title")}
    assert {box.name for box in picture(case[1])} <= titles


def test_overlay_names_nodes_of_the_exported_program(case: Case) -> None:
    program, _, converted, inputs = case
    errors = debug.errors_by_node(debug.compare(program, converted, inputs))
    found = debug.overlay({**errors, "x": float("inf")})
    assert list(found) == ["graph"]
    names = {node.name for node in program.graph.nodes}
    assert set(found["graph"]["results"]) <= names
    assert found["graph"]["results"]["linear"] == {"value": errors["linear"]}
    assert "x" not in found["graph"]["results"]


def test_colours_go_from_red_to_green() -> None:
    assert colour(None) == "#eeeeee"
    assert colour(-5) == colour(10.0) == "#d73027"
    assert colour(50.0) == colour(float("inf")) == "#1a9850"


def test_nodes_for_model_explorer_of_any_program(case: Case) -> None:
    batch = {0: torch.export.Dim("batch", min=2, max=16)}
    varying = torch.export.export(
        ConvBn().eval(), (torch.randn(4, 3, 8, 8),), dynamic_shapes=(batch,)
    )
    again = torch.export.export(case[2], (case[3][0],))
    for program in (varying, again, exported(Cond)):
        graphs = explorer_nodes(program)
        names = [node.name for node in program.graph.nodes]
        assert [node.id for node in graphs["graph"]] == names
        for nodes in graphs.values():
            assert {read for node in nodes for read in node.reads} <= {node.id for node in nodes}
    (cond,) = (n for n in explorer_nodes(exported(Cond))["graph"] if n.bodies)
    assert set(cond.bodies) <= set(explorer_nodes(exported(Cond)))


def test_the_extension_opens_what_was_saved(case: Case, tmp_path: Path) -> None:
    name = "pt2q.debug.drawing.model_explorer"
    assert find_spec(f"{name}.main") is not None  # the module that Model Explorer asks for
    managing = pytest.importorskip(
        "model_explorer.extension_manager", reason="Model Explorer is not installed"
    )
    path = tmp_path / "int8.pt2"
    program = torch.export.export(case[2], (case[3][0],))
    torch.export.save(program, path)
    manager = managing.ExtensionManager([name])
    manager.load_extensions()
    asked = {"cmdId": "convert", "extensionId": "pt2q", "modelPath": str(path), "settings": {}}
    (graph,) = manager.run_cmd(asked)["graphs"]
    assert [node["id"] for node in graph["nodes"]] == [node.name for node in program.graph.nodes]
