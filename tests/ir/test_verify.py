"""Laws of the graph: sound models keep them, and each way of breaking one is named."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from support.nets import NETS
from support.random_images import Network, recipes
from support.small_quantizers import DYNAMIC, NoopQuantizer, SmallQuantizer
from torch import nn

from pt2q import MinMaxObserver, QuantGraphModule, convert_pt2e, prepare_pt2e, verify
from pt2q.errors import GraphLawError
from pt2q.ir import ops
from pt2q.ir.graph import set_constant
from pt2q.ir.verify import LAWS
from pt2q.passes import run_passes, verified_passes
from pt2q.quantizers import XNNPACKQuantizer, get_symmetric_quantization_config

X = (torch.linspace(-1, 1, 2 * 3 * 36).reshape(2, 3, 6, 6),)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.other = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.conv(x) + self.other(x)


def prepared(quantizer=None) -> QuantGraphModule:
    model = prepare_pt2e(torch.export.export(Net().eval(), X), quantizer or SmallQuantizer())
    model(*X)
    return model


def converted(quantizer=None) -> QuantGraphModule:
    return convert_pt2e(prepared(quantizer))


def first(model, targets):
    return next(n for n in model.graph.nodes if ops.is_op(n, targets))


def broken(model, inputs=None) -> list[str]:
    return [f"{v.law} {v.text}" for v in verify(model, inputs).violations]


def names(violations: list[str]) -> set[str]:
    return {text.split()[0] for text in violations}


# ------------------------------------------------------------------ sound models


@pytest.mark.parametrize("quantizer", [SmallQuantizer(), SmallQuantizer(DYNAMIC), NoopQuantizer()])
def test_sound_models_keep_all_laws(quantizer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ready = prepared(quantizer)
    assert verify(ready, X).ok, str(verify(ready, X))
    done = convert_pt2e(ready)
    report = verify(done, X)
    assert report.ok and report.laws == tuple(LAWS), str(report)
    report.raise_if_broken()
    assert "all laws hold" in str(report)


@pytest.mark.parametrize("name", ["small_mobilenet", "small_vit", "small_bert"])
def test_networks_keep_all_laws(name):
    quantizer = XNNPACKQuantizer()
    quantizer.set_global(get_symmetric_quantization_config(is_per_channel=True))
    inputs = NETS[name].inputs(2)
    ready = prepare_pt2e(torch.export.export(NETS[name].build(), inputs), quantizer)
    ready(*inputs)
    for model in (ready, convert_pt2e(ready)):
        verify(model, inputs).raise_if_broken()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        verify(convert_pt2e(ready, True), inputs).raise_if_broken()


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(recipes())
def test_random_networks_keep_the_laws(recipe):
    inputs = recipe.inputs()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(Network(recipe).eval(), inputs)
        ready = prepare_pt2e(exported, SmallQuantizer())
        ready(*inputs)
        for model in (ready, convert_pt2e(ready), convert_pt2e(ready, True)):
            verify(model).raise_if_broken()


def test_verify_changes_nothing():
    model = converted()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    text = str(model.graph)
    verify(model, X)
    assert str(model.graph) == text
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


# ------------------------------------------------------------------ broken ones


@pytest.mark.parametrize(
    ("argument", "value", "expected"),
    [
        ("scale", float("inf"), "finite and positive"),
        ("scale", 0.0, "finite and positive"),
        ("scale", -0.5, "finite and positive"),
        ("zero_point", 300, r"must be in [-128, 127], found [300]"),
        ("quant_max", 400, "outside of torch.int8"),
        ("quant_min", 127, "is empty"),
    ],
)
def test_parameters_of_a_quantize(argument, value, expected):
    model = converted()
    node = first(model, ops.QUANTIZE)
    ops.set_argument(node, argument, value)
    found = broken(model)
    assert any(text.startswith("parameters") and expected in text for text in found)
    assert any(text.startswith("mirror") and argument in text for text in found)
    assert verify(model).violations[0].node == node.name


def test_scales_per_channel():
    model = converted()
    node = next(n for n in model.graph.nodes if "per_channel" in str(n.target))
    scale = str(ops.argument(node, "scales").target)
    set_constant(model, scale, torch.tensor([1.0, float("nan"), 0.1, 0.1]))
    assert names(broken(model)) == {"parameters"}
    set_constant(model, scale, torch.ones(3))
    assert any("(3,) scales for 4 channels" in text for text in broken(model))


def test_a_dequantize_that_does_not_mirror():
    model = converted()
    node = next(
        n
        for n in model.graph.nodes
        if ops.is_op(n, ops.DEQUANTIZE) and ops.is_op(n.args[0], ops.QUANTIZE)
    )
    ops.set_argument(node, "zero_point", int(ops.argument(node, "zero_point")) - 1)
    assert names(broken(model)) == {"mirror"}


def test_dynamic_parameters_of_another_value():
    model = converted(SmallQuantizer(DYNAMIC))
    node = next(
        n
        for n in model.graph.nodes
        if n.target is torch.ops.quantized_decomposed.dequantize_per_tensor.tensor
    )
    scale = ops.argument(node, "scale")
    with model.graph.inserting_before(node):
        other = model.graph.call_function(ops.GETITEM, (scale.args[0], 1))
    other.meta.update(scale.meta)
    ops.set_argument(node, "scale", other)
    assert names(broken(model)) == {"mirror"}


def test_stored_integers_outside_of_their_range():
    model = converted()
    node = next(n for n in model.graph.nodes if n.op == "get_attr" and "quantized" in n.name)
    stored = model.state_dict()[str(node.target)]
    set_constant(model, str(node.target), torch.full_like(stored, -128))
    found = broken(model)
    assert names(found) == {"mirror"} and "holds [-128, -128]" in found[0]
    set_constant(model, str(node.target), stored.to(torch.int32))
    assert "holds torch.int32" in broken(model)[0]


def test_dangling_and_unused():
    model = converted()
    set_constant(model, "extra", torch.ones(2))
    assert broken(model) == ["unused is held by the module and read by no node"]
    model = converted()
    node = next(n for n in model.graph.nodes if n.op == "get_attr")
    node.target = "nowhere.to_be.found"
    assert "attributes" in names(broken(model))
    model = prepared()
    model.add_module("activation_post_process_99", MinMaxObserver())
    assert broken(model) == ["unused is an observer that no node calls"]


def test_metadata():
    model = converted()
    node = first(model, ops.QUANTIZE)
    for key in ("nn_module_stack", "from_node", "val"):
        del node.meta[key]
    found = broken(model)
    assert names(found) == {"metadata"} and len(found) == 3


def test_recorded_values():
    model = converted()
    node = first(model, ops.QUANTIZE)
    node.meta["val"] = node.meta["val"].to(torch.int32)
    assert names(broken(model)) == {"dtypes"}
    assert names(broken(model, X)) == {"dtypes", "values"}


def test_observers_that_share_are_one_object():
    model = prepared()
    target = next(
        n.target
        for n in model.graph.nodes
        if n.op == "call_module" and any(ops.is_op(u, ops.ADD) for u in n.users)
    )
    model.add_module("another", copy.deepcopy(model.get_submodule(str(target))))
    next(n for n in model.graph.nodes if n.target == target).target = "another"
    assert "sharing" in names(broken(model))


def test_a_model_that_cannot_be_exported():
    model = converted()
    node = first(model, ops.CONV)
    ops.set_argument(node, "groups", 2)
    assert names(broken(model, X)) >= {"values", "exportable"}


def test_raise_if_broken_names_each_violation():
    model = converted()
    ops.set_argument(first(model, ops.QUANTIZE), "scale", 0.0)
    with pytest.raises(GraphLawError, match=r"3 violation.*\n.*\[parameters\].*\n.*\[mirror\]"):
        verify(model).raise_if_broken()
    with pytest.raises(ValueError, match="no law 'gravity'"):
        verify(model, laws=["gravity"])


def test_verified_passes_check_the_laws():
    class Spoil:
        def __call__(self, model) -> bool:
            ops.set_argument(first(model, ops.QUANTIZE), "scale", float("nan"))
            return True

    model = converted()
    run_passes(model, [])
    with verified_passes(), pytest.raises(GraphLawError, match="broke a law"):
        run_passes(model, [Spoil()])


UNLOCATED = """
class Unlocated(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(x + 1.0).relu()
"""


def test_operators_that_stand_in_no_file_need_no_stack_trace():
    scope = {"torch": torch}
    exec(UNLOCATED, scope)
    x = torch.randn(2, 4)
    exported = torch.export.export(scope["Unlocated"]().eval(), (x,))
    added = next(n for n in exported.graph.nodes if ops.is_op(n, ops.ADD))
    assert not added.meta.get("stack_trace")  # or this test shows nothing
    ready = prepare_pt2e(exported, SmallQuantizer())
    ready(x)
    for model in (ready, convert_pt2e(ready), convert_pt2e(ready, True)):
        verify(model, (x,)).raise_if_broken()


@pytest.mark.parametrize("key", ["nn_module_stack", "stack_trace", "from_node", "val"])
def test_each_kind_of_metadata_is_missed(key):
    model = converted()
    node = first(model, ops.DEQUANTIZE)
    del node.meta[key]
    assert [v.node for v in verify(model, laws=["metadata"]).violations] == [node.name]


def test_operators_that_export_gives_no_module_need_none():
    ready = prepared()
    added = first(ready, ops.ADD)
    del added.meta["nn_module_stack"]  # as for those that unpack a subclass of tensors
    for model in (ready, convert_pt2e(ready)):
        verify(model).raise_if_broken()


class Tagged(torch.Tensor):
    """A subclass that torch makes no deep copy of."""


class Unusual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.tagged = nn.Linear(4, 4), nn.Linear(4, 4)
        self.tagged.weight = nn.Parameter(self.tagged.weight.detach().as_subclass(Tagged))
        self.register_buffer("pattern", torch.eye(4).to_sparse_csr())

    def forward(self, x):
        return torch.sparse.mm(self.pattern, self.tagged(self.linear(x)))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_tensors_without_deep_copies_are_no_violation():
    x = torch.randn(4, 4)
    ready = prepare_pt2e(torch.export.export(Unusual().eval(), (x,)), SmallQuantizer())
    ready(x)
    for model in (ready, convert_pt2e(ready)):
        verify(model, (x,)).raise_if_broken()


def test_operators_that_give_nothing_need_no_value():
    class Cast(nn.Module):
        def forward(self, x):
            return x.half().float() + 1.0

    x = torch.randn(2, 4)
    program = torch.export.export(Cast(), (x,)).run_decompositions()
    asserted = [n for n in program.graph.nodes if "_assert_tensor_metadata" in str(n.target)]
    assert any("val" not in n.meta for n in asserted)  # or this test shows nothing
    ready = prepare_pt2e(program, SmallQuantizer())
    ready(x)
    for model in (ready, convert_pt2e(ready)):
        verify(model, (x,)).raise_if_broken()
