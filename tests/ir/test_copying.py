"""Copies of graphs: metadata of any class goes with them and refers to the copy."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from support.small_quantizers import ACTIVATION, NoopQuantizer, SmallQuantizer
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.immutable_collections import immutable_dict, immutable_list

from pt2q import MinMaxObserver, QuantGraphModule, convert_pt2e, prepare_pt2e
from pt2q.ir.module import copy_module, import_exported
from pt2q.spec import (
    QUANT_ANNOTATION_KEY,
    QuantizationAnnotation,
    QuantizationSpec,
    SharedQuantizationSpec,
    annotation_of,
)


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + x.relu()


@dataclass
class ForeignAnnotation:
    """As another library might write one."""

    input_qspec_map: dict[Node, Any] = field(default_factory=dict)
    output_qspec: Any = None
    partner: Node | None = None
    extra: Any = "kept"


@dataclass(frozen=True)
class Neighbours:
    """A frozen class that refers to nodes."""

    nodes: tuple[Node, ...]


@dataclass
class Detailed(QuantizationAnnotation):
    _is_output_of_quantized_pattern: bool = False


Pair = namedtuple("Pair", "first second")


def imported() -> QuantGraphModule:
    return import_exported(torch.export.export(Sum().eval(), (torch.randn(2, 4),)))


def node_of(model: GraphModule, name: str) -> Node:
    return next(node for node in model.graph.nodes if node.name == name)


@pytest.mark.parametrize("move", [copy_module, copy.deepcopy])
def test_an_annotation_of_any_class_keeps_its_fields_and_refers_to_the_copy(
    move: Callable[[QuantGraphModule], QuantGraphModule],
) -> None:
    model = imported()
    add, relu, x = (node_of(model, name) for name in ("add", "relu", "x"))
    given = ForeignAnnotation({relu: ACTIVATION}, SharedQuantizationSpec((relu, add)), x)
    given.not_a_field = [relu]  # type: ignore[attr-defined]
    add.meta[QUANT_ANNOTATION_KEY] = given
    moved = move(model)
    found: Any = annotation_of(node_of(moved, "add"))
    there = {name: node_of(moved, name) for name in ("add", "relu", "x")}
    assert type(found) is ForeignAnnotation and found is not given
    assert found.input_qspec_map == {there["relu"]: ACTIVATION}
    assert found.input_qspec_map[there["relu"]] is ACTIVATION  # it holds no nodes: the very spec
    assert found.output_qspec == SharedQuantizationSpec((there["relu"], there["add"]))
    assert found.partner is there["x"] and found.extra == "kept"
    assert found.not_a_field == [there["relu"]]
    assert given.input_qspec_map == {relu: ACTIVATION} and given.partner is x
    found.input_qspec_map.clear()
    assert given.input_qspec_map, "changing the copy leaves the original alone"


def test_a_spec_that_names_no_node_is_shared_whatever_it_holds() -> None:
    model = imported()
    add = node_of(model, "add")
    constructor = MinMaxObserver.with_args(eps=2**-10, extras=["a", {"list": 1}])
    spec = QuantizationSpec(torch.int8, constructor)
    add.meta[QUANT_ANNOTATION_KEY] = QuantizationAnnotation({node_of(model, "relu"): spec}, spec)
    found = annotation_of(node_of(copy_module(model), "add"))
    assert found is not None and found.output_qspec is spec
    assert list(found.input_qspec_map.values()) == [spec]


def test_metadata_under_any_key_refers_to_the_copy() -> None:
    model = imported()
    relu, add = node_of(model, "relu"), node_of(model, "add")
    counted: defaultdict[Node, int] = defaultdict(int, {relu: 2})
    ordered = OrderedDict([("b", relu), ("a", add)])
    add.meta["mine"] = {
        "frozen": Neighbours((relu, add)),
        "pair": Pair(relu, 1),
        "counted": counted,
    }
    add.meta["theirs"] = immutable_dict({"list": immutable_list([relu, 3]), "ordered": ordered})
    moved = copy_module(model)
    there, here = node_of(moved, "relu"), node_of(moved, "add")
    mine, theirs = here.meta["mine"], here.meta["theirs"]
    assert mine["frozen"] == Neighbours((there, here)) and mine["pair"] == Pair(there, 1)
    assert mine["counted"] == {there: 2} and mine["counted"]["missing"] == 0
    assert theirs == {"list": [there, 3], "ordered": ordered.__class__([("b", there), ("a", here)])}
    assert type(theirs) is immutable_dict and type(theirs["list"]) is immutable_list
    assert add.meta["mine"]["counted"] is counted and counted == {relu: 2}


def test_a_quantizer_may_give_back_a_copy_with_shared_specs() -> None:
    """Specs that name edges name those of the module that was given back."""

    class Copies(NoopQuantizer):
        def annotate(self, model: GraphModule) -> GraphModule:
            return SmallQuantizer().annotate(copy_module(model))

    x = torch.randn(2, 4)
    results = []
    for quantizer in (Copies(), SmallQuantizer()):
        prepared = prepare_pt2e(torch.export.export(Sum().eval(), (x,)), quantizer)
        prepared(x)
        results.append([str(n.target) for n in convert_pt2e(prepared).graph.nodes])
    assert results[0] == results[1] and any("quantize" in name for name in results[0])


def test_more_fields_survive_prepare() -> None:
    """What a quantizer wrote on a subclass is there in the prepared model and in copies of it."""

    class Marking(NoopQuantizer):
        def annotate(self, model: GraphModule) -> GraphModule:
            spec = ACTIVATION
            assert isinstance(spec, QuantizationSpec)
            add = node_of(model, "add")
            specs = {node: spec for node in add.all_input_nodes}
            add.meta[QUANT_ANNOTATION_KEY] = Detailed(
                specs, spec, _annotated=True, _is_output_of_quantized_pattern=True
            )
            return model

    prepared = prepare_pt2e(torch.export.export(Sum().eval(), (torch.randn(2, 4),)), Marking())
    for model in (prepared, copy.deepcopy(prepared), copy_module(prepared)):
        found: Any = annotation_of(node_of(model, "add"))
        assert type(found) is Detailed and found._is_output_of_quantized_pattern
        assert found._annotated
