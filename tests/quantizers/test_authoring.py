"""What authors of quantizers call, used the way a quantizer in a single file uses it."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import nn
from torch.fx import GraphModule
from torch.nn import functional as F

from pt2q import (
    HistogramObserver,
    PlaceholderObserver,
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
    convert_pt2e,
    prepare_pt2e,
    sqnr,
)
from pt2q.errors import SpecError
from pt2q.ir.graph import dump
from pt2q.quantizers import (
    Q_ANNOTATION_KEY,
    ComposableQuantizer,
    OperatorConfig,
    QuantizationConfig,
    WrapperModule,
    X86InductorQuantizer,
    annotate_input_qspec_map,
    annotate_output_qspec,
    find_sequential_partitions,
    get_bias_qspec,
    get_default_x86_inductor_quantization_config,
    get_equivalent_types,
    get_input_act_qspec,
    get_module_name_filter,
    get_new_attr_name_with_prefix,
    get_output_act_qspec,
    get_symmetric_quantization_config,
    get_weight_qspec,
    is_valid_annotation,
    update_equivalent_types_dict,
)

FLOAT_BIAS = QuantizationSpec(dtype=torch.float32, observer_or_fake_quant_ctr=PlaceholderObserver)


def config() -> QuantizationConfig:
    made = get_symmetric_quantization_config(is_per_channel=True)
    return QuantizationConfig(
        made.input_activation, made.output_activation, made.weight, FLOAT_BIAS
    )


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.second = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x)) + x


class LinearOfOneModule(Quantizer):
    """Annotates in place and gives back nothing, as many quantizers do."""

    def __init__(self, module: str) -> None:
        self.wanted = get_module_name_filter(module)
        self.supported = OperatorConfig(config(), [[nn.Linear], [F.linear]])

    def transform_for_annotation(self, model: GraphModule) -> None:  # type: ignore[override]
        return None

    def annotate(self, model: GraphModule) -> None:  # type: ignore[override]
        for node in model.graph.nodes:
            if node.target is not torch.ops.aten.linear.default or not self.wanted(node):
                continue
            activation, weight, bias = node.args
            annotate_input_qspec_map(node, activation, get_input_act_qspec(self.supported.config))
            annotate_input_qspec_map(node, weight, get_weight_qspec(self.supported.config))
            annotate_input_qspec_map(node, bias, get_bias_qspec(self.supported.config))
            annotate_output_qspec(node, get_output_act_qspec(self.supported.config))
            node.meta["quantization_annotation"]._annotated = True

    def validate(self, model: GraphModule) -> None:
        return None


def exported() -> tuple[torch.export.ExportedProgram, tuple[torch.Tensor]]:
    example = (torch.randn(4, 8),)
    return torch.export.export(Net().eval(), example), example


@pytest.mark.parametrize("composed", [False, True])
def test_a_quantizer_that_gives_back_nothing(composed: bool) -> None:
    program, example = exported()
    first, second = LinearOfOneModule("first.0"), LinearOfOneModule("second")
    prepared = prepare_pt2e(program, ComposableQuantizer([first, second]) if composed else first)
    prepared(*example)
    converted = convert_pt2e(prepared)
    weights = dump(converted).count("dequantize_per_channel.default(")
    assert weights == (2 if composed else 1)  # and no bias
    assert 30 < sqnr(program.module()(*example), converted(*example)) < 80


def test_specs_on_one_node_are_put_together() -> None:
    program, _ = exported()
    node = next(n for n in program.graph.nodes if n.target is torch.ops.aten.linear.default)
    assert not is_valid_annotation(node.meta.get("quantization_annotation"))
    annotate_output_qspec(node, config().output_activation)
    annotate_input_qspec_map(node, node.args[0], SharedQuantizationSpec(node))
    annotate_input_qspec_map(node, node.args[1], None)
    found = node.meta["quantization_annotation"]
    assert found.output_qspec == config().output_activation
    assert found.input_qspec_map == {node.args[0]: SharedQuantizationSpec(node), node.args[1]: None}
    assert is_valid_annotation(found)
    assert not is_valid_annotation(QuantizationAnnotation())


def test_specs_of_a_configuration() -> None:
    given = config()
    assert get_input_act_qspec(given) is given.input_activation
    assert get_output_act_qspec(given) is given.output_activation
    assert get_weight_qspec(given) is given.weight
    assert get_bias_qspec(given) is FLOAT_BIAS
    for read in (get_input_act_qspec, get_output_act_qspec, get_weight_qspec, get_bias_qspec):
        assert read(None) is None
        assert read(QuantizationConfig(None, None, None)) is None


def test_specs_that_an_author_cannot_have_meant_are_refused() -> None:
    per_channel, affine = config().weight, config().input_activation
    integer = QuantizationSpec(
        dtype=torch.int32,
        quant_min=-(2**31),
        quant_max=2**31 - 1,
        qscheme=torch.per_tensor_symmetric,
        observer_or_fake_quant_ctr=HistogramObserver,
    )
    wrong = QuantizationConfig(per_channel, per_channel, affine, integer)
    with pytest.raises(SpecError, match="input activations: expected one of"):
        get_input_act_qspec(wrong)
    with pytest.raises(SpecError, match="output activations: expected one of"):
        get_output_act_qspec(wrong)
    with pytest.raises(SpecError, match="weights: expected one of"):
        get_weight_qspec(wrong)
    with pytest.raises(SpecError, match="DerivedQuantizationSpec"):
        get_bias_qspec(wrong)


def test_a_module_name_means_what_is_inside_it_too() -> None:
    program, _ = exported()
    linears = [n for n in program.graph.nodes if n.target is torch.ops.aten.linear.default]
    assert [get_module_name_filter("first")(n) for n in linears] == [True, False]
    assert [get_module_name_filter("first.0")(n) for n in linears] == [True, False]
    assert [get_module_name_filter("firs")(n) for n in linears] == [False, False]


def test_what_counts_as_the_same_source_can_be_changed() -> None:
    class Addition(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + x

    model = torch.export.export(Addition(), (torch.randn(2),)).module()
    before = get_equivalent_types()
    assert {torch.add, operator.add, operator.iadd} in before
    assert len(find_sequential_partitions(model, [torch.add])) == 1
    try:
        update_equivalent_types_dict([{nn.ReLU, F.relu}])
        assert get_equivalent_types() == [{nn.ReLU, F.relu}]
        assert find_sequential_partitions(model, [nn.ReLU]) == []
    finally:
        update_equivalent_types_dict(before)
    assert get_equivalent_types() == before
    with pytest.raises(ValueError, match="module classes and functions"):
        update_equivalent_types_dict([{"relu"}])


def test_the_x86_quantizer_tells_its_global_configuration() -> None:
    quantizer = X86InductorQuantizer()
    assert quantizer.get_global_quantization_config() is None
    wanted = get_default_x86_inductor_quantization_config()
    assert quantizer.set_global(wanted).get_global_quantization_config() == wanted


def test_a_function_can_be_exported_and_new_attributes_have_names_of_their_own() -> None:
    wrapped = WrapperModule(lambda x, scale=1.0: F.relu(x) * scale)
    program = torch.export.export(wrapped, (torch.tensor([-1.0, 2.0]),), {"scale": 3.0})
    assert program.module()(torch.tensor([-1.0, 2.0]), scale=3.0).tolist() == [0.0, 6.0]
    module, name_in = nn.Module(), get_new_attr_name_with_prefix("block.scale_")
    module.block_scale_0 = module.block_scale_1 = 1.0
    assert name_in(module) == "block_scale_2"
    assert Q_ANNOTATION_KEY == "quantization_annotation"
