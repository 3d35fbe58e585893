"""The runner of passes: what it verifies, and that nothing to do is said so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from support.flow import imported
from support.nodes import nodes_of
from support.passes import Fork, prepared_copy
from support.results import assert_same
from support.small_quantizers import (
    SmallQuantizer,
)

from pt2q import QuantGraphModule
from pt2q.errors import GraphLawError
from pt2q.flow import conversion_passes
from pt2q.ir import ops
from pt2q.ir.graph import dump
from pt2q.passes import (
    DuplicateDQPass,
    FoldQuantizedConstants,
    ObserversToQDQ,
    PortNodeMetaForQDQ,
    RemoveUnusedAttributes,
    RemoveUnusedConstants,
    run_passes,
    verified_passes,
)

pytestmark = pytest.mark.usefixtures("no_gradients")


@dataclass(frozen=True)
class Liar:
    """Changes the graph and denies it."""

    def __call__(self, model: QuantGraphModule) -> bool:
        first = nodes_of(model, ops.LINEAR)[0]
        first.replace_all_uses_with(ops.argument(first, "input"))
        return False


@dataclass(frozen=True)
class Vandal:
    """Leaves a node that reads an attribute nobody has."""

    def __call__(self, model: QuantGraphModule) -> bool:
        with model.graph.inserting_before(next(iter(model.graph.nodes))):
            model.graph.create_node("get_attr", "nowhere")
        return True


@pytest.mark.parametrize(
    ("wrong", "text"), [(Liar(), "changed nothing"), (Vandal(), "does not lint|nowhere")]
)
def test_verification_finds(wrong: Any, text: str) -> None:
    model = imported(Fork(), torch.randn(2, 4))
    with verified_passes(), pytest.raises(GraphLawError, match=text):
        run_passes(model, [wrong])


def test_verification_is_off_outside() -> None:
    run_passes(imported(Fork(), torch.randn(2, 4)), [Liar()])
    with verified_passes():
        pass
    run_passes(imported(Fork(), torch.randn(2, 4)), [Liar()])


@pytest.mark.parametrize(
    "step",
    [
        ObserversToQDQ(),
        RemoveUnusedConstants(),
        DuplicateDQPass(),
        PortNodeMetaForQDQ(),
        FoldQuantizedConstants(),
        RemoveUnusedAttributes(),
    ],
    ids=lambda step: type(step).__name__,
)
def test_nothing_to_do_is_said_so(step: Any) -> None:
    model = imported(Fork(), torch.randn(2, 4))
    before = dump(model)
    assert step(model) is False
    assert dump(model) == before
    assert hash(step) == hash(type(step)())


@pytest.mark.parametrize("fold", [True, False])
def test_every_pass_of_conversion_keeps_the_values(fold: bool) -> None:
    x = torch.randn(2, 4)
    model = prepared_copy(Fork(), SmallQuantizer(), x)
    value = None
    with verified_passes():
        for step in conversion_passes(fold_quantize=fold):
            run_passes(model, [step])
            if isinstance(step, ObserversToQDQ):
                value = model(x)
            elif value is not None:
                assert_same(model(x), value)
    assert value is not None
