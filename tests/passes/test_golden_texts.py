"""Every pass has a text of a graph before and after it."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import inspect
import pkgutil

import pytest
import torch
from support.golden import GOLDEN, assert_golden
from support.pass_cases import CASES
from support.results import assert_same

import pt2q.passes
from pt2q import QuantGraphModule
from pt2q.ir.control_flow import named_graph_modules
from pt2q.ir.graph import dump, module_path
from pt2q.passes import run_passes, verified_passes
from pt2q.passes.prepare.insert_observers import OBSERVER_NAME

pytestmark = [
    pytest.mark.usefixtures("no_gradients"),
    pytest.mark.filterwarnings("ignore::pt2q.errors.BatchNormNotFoldedWarning"),
]

FOLDER = "passes"


def text_of(model: QuantGraphModule, original: torch.nn.Module) -> str:
    """Graphs with the module of each call, and what the module holds: of observers Parameters."""
    shared = {id(tensor) for tensor in original.state_dict(keep_vars=True).values()}
    lines = []
    for path, module in named_graph_modules(model):
        lines += [f"graph {path}" if path else "graph"]
        nodes = zip(module.graph.nodes, dump(module).splitlines(), strict=True)
        for node, line in nodes:
            place = module_path(node)
            lines.append(f"  {line}" + (f"  # {place}" if place else ""))
    held = [*model.named_parameters(remove_duplicate=False)]
    buffers = model.named_buffers(remove_duplicate=False)
    held += [pair for pair in buffers if OBSERVER_NAME not in pair[0]]
    for name, tensor in sorted(held):
        kind = "Parameter" if isinstance(tensor, torch.nn.Parameter) else "buffer"
        dtype = str(tensor.dtype).removeprefix("torch.")
        whose = ", the float model's own" if id(tensor) in shared else ""
        lines.append(f"holds {name}: {kind} {dtype}{list(tensor.shape)}{whose}")
    return "\n".join(lines)


def passes() -> set[type]:
    """The classes that are passes, by what they look like: frozen dataclasses to be called."""
    found = set()
    for info in pkgutil.walk_packages(pt2q.passes.__path__, "pt2q.passes."):
        module = importlib.import_module(info.name)
        for _, kind in inspect.getmembers(module, inspect.isclass):
            own = kind.__module__ == info.name and "__call__" in vars(kind)
            if own and dataclasses.is_dataclass(kind):
                found.add(kind)
    return found


def test_every_pass_has_a_golden_text() -> None:
    written = {path.stem for path in (GOLDEN / FOLDER).glob("*.txt")}
    assert {kind.__name__ for kind in passes()} == written == {k.__name__ for k in CASES}


def test_every_pass_is_frozen_and_has_a_public_name() -> None:
    for kind in passes():
        assert kind.__dataclass_params__.frozen, kind
        assert getattr(pt2q.passes, kind.__name__) is kind
        assert kind.__name__ in pt2q.passes.__all__


@pytest.mark.parametrize("kind", CASES, ids=lambda kind: kind.__name__)
def test_before_and_after(kind: type) -> None:
    case = CASES[kind]
    original, model, step = case.make()
    assert type(step) is kind
    before = text_of(model, original)
    value = None if case.keeps is None else copy.deepcopy(model)(*case.inputs)
    with verified_passes():
        run_passes(model, [step])
    after = text_of(model, original)
    assert after != before
    assert_golden(f"{FOLDER}/{kind.__name__}", f"BEFORE\n{before}\n\nAFTER\n{after}")
    if case.keeps is not None:
        assert_same(copy.deepcopy(model)(*case.inputs), value, case.keeps)
