"""Each key of a recipe does what its call in Python does, to the last bit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pt2q
from pt2q.app.applied_changes import with_changes
from pt2q.app.recipe import parse
from pt2q.app.recipe.writing import recipe_text
from pt2q.debug.diagnosis.changes import Change
from pt2q.quantizers import (
    ComposableQuantizer,
    EmbeddingQuantizer,
    OnnxQDQQuantizer,
    WeightQuantizer,
    X86InductorQuantizer,
    XNNPACKQuantizer,
    get_default_x86_inductor_quantization_config,
    get_dynamic_activation_4bit_weight_config,
    get_embedding_quantization_config,
    get_symmetric_quantization_config,
    get_weight_only_quantization_config,
    get_x86_inductor_linear_dynamic_fp16_config,
)
from pt2q.quantizers.toolkit.other_observers import with_smallest_scale


class Reader(nn.Module):
    """A table, attention, a residual and a recurrent layer: what the keys are about."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 32)
        self.query = nn.Linear(32, 32)
        self.rnn = nn.RNN(32, 32, batch_first=True)
        self.head = nn.Linear(32, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        q = self.query(x)
        x = torch.sin(x + self.query(nn.functional.scaled_dot_product_attention(q, q, q)))
        return self.head(self.rnn(x, x.new_zeros(1, 2, 32))[0])


@pytest.fixture(scope="module")
def reader() -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    return torch.export.export(Reader().eval(), (torch.zeros(2, 4, dtype=torch.long),))


@pytest.fixture(scope="module")
def usual_of(reader: torch.export.ExportedProgram) -> Callable[[str], Any]:
    return cache(lambda backend: converted(reader, parse(f"backend = {backend!r}").quantizer()))


def converted(program: torch.export.ExportedProgram, quantizer: Any) -> Any:
    prepared = pt2q.prepare_pt2e(program, quantizer)
    prepared(torch.arange(8).reshape(2, 4))
    return pt2q.convert_pt2e(prepared)


def floored(min_scale: float) -> XNNPACKQuantizer:
    config = get_symmetric_quantization_config(is_per_channel=True)
    roles = ("input_activation", "output_activation", "weight")
    floors = {role: with_smallest_scale(getattr(config, role), min_scale) for role in roles}
    return XNNPACKQuantizer(pt2q.quantizers.QuantizationConfig(**floors))


def operators(model: Any) -> Counter[Any]:
    """The operators, and the integers that they round to; copies of biases are none."""
    calls = [node for node in model.graph.nodes if node.op == "call_function"]
    return Counter((node.target, *(a for a in node.args if type(a) is int)) for node in calls)


def with_tables(quantizer: Any, *config: Any) -> ComposableQuantizer:
    return ComposableQuantizer([EmbeddingQuantizer(*config), quantizer])


X86 = 'backend = "x86"'
ONNX = 'backend = "onnxruntime"'
SAME: dict[str, tuple[str, Callable[[], Any]]] = {
    "8da4w": (
        '[default]\nmode = "dynamic"\nweight_range = [-8, 7]\ngroup_size = 32',
        lambda: WeightQuantizer(
            get_dynamic_activation_4bit_weight_config(group_size=32)
        ).set_decompositions(recurrent=True),
    ),
    "residual projections": (
        'residual_projections = "static"',
        lambda: XNNPACKQuantizer(residual_projections="static"),
    ),
    "scale floor": ("[default]\nmin_scale = 0.05", lambda: floored(0.05)),
    "decompositions": (
        "[decompositions]\nattention = true\nrecurrent = true\nmax_steps = 4",
        lambda: XNNPACKQuantizer().set_decompositions(attention=True, recurrent=True, max_steps=4),
    ),
    "no decompositions": (
        "[decompositions]\nrecurrent = false",
        lambda: XNNPACKQuantizer().set_decompositions(recurrent=False),
    ),
    "too short for it": (
        "[decompositions]\nmax_steps = 3",
        lambda: XNNPACKQuantizer().set_decompositions(max_steps=3),
    ),
    "embeddings": ("embeddings = true", lambda: with_tables(XNNPACKQuantizer())),
    "embeddings alone": (
        'embeddings = true\n[default]\nmode = "float"',
        lambda: EmbeddingQuantizer().set_decompositions(recurrent=True),
    ),
    "embeddings, dynamic": (
        'embeddings = true\n[default]\nmode = "dynamic"',
        lambda: with_tables(XNNPACKQuantizer(get_symmetric_quantization_config(is_dynamic=True))),
    ),
    "embeddings for ONNX": (
        f"{ONNX}\nembeddings = true",
        lambda: with_tables(OnnxQDQQuantizer.onnxruntime(), get_embedding_quantization_config()),
    ),
    "weights alone": (
        f'{ONNX}\n[default]\nmode = "weights"',
        lambda: WeightQuantizer().set_decompositions(attention=True),
    ),
    "weights alone, in groups": (
        f'{ONNX}\n[default]\nmode = "weights"\nweight_range = [-8, 7]\ngroup_size = 8',
        lambda: WeightQuantizer(
            get_weight_only_quantization_config(4, group_size=8)
        ).set_decompositions(attention=True),
    ),
    "weights in float16": (
        f'{X86}\n[default]\nmode = "weights"\nweight_dtype = "float16"',
        lambda: X86InductorQuantizer(get_x86_inductor_linear_dynamic_fp16_config()),
    ),
    "7 bits": (
        f"{X86}\n[default]\nactivation_range = [0, 127]",
        lambda: X86InductorQuantizer(
            get_default_x86_inductor_quantization_config(reduce_range=True)
        ),
    ),
}
EXAMPLE = torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6]])


@pytest.mark.filterwarnings("ignore::pt2q.errors.SmallestScaleWarning")
@pytest.mark.parametrize("name", SAME)
def test_a_recipe_is_its_python(name, reader, usual_of) -> None:
    text, python = SAME[name]
    recipe = parse(text)
    assert parse(recipe_text(recipe)) == recipe
    found, wanted = converted(reader, recipe.quantizer()), converted(reader, python())
    assert operators(found) == operators(wanted)
    assert torch.equal(found(EXAMPLE), wanted(EXAMPLE))
    usual = usual_of(recipe.backend)
    same = torch.equal(found(EXAMPLE), usual(EXAMPLE))
    assert not same or operators(found) != operators(usual)


def test_statements_hold_for_tables_of_embeddings(reader) -> None:
    said = 'embeddings = true\n[skip]\n{} = ["{}"]'
    for kind, skipped in (("modules", "table"), ("operators", "aten.embedding")):
        quantizer = parse(said.format(kind, skipped)).quantizer()
        converted(reader, quantizer)
        assert not any("embedding" in row.operator for row in quantizer.report().quantized)


def test_int16_activations(reader) -> None:
    recipe = parse(f'{ONNX}\n[default]\nactivation_dtype = "int16"')
    wide, usual = converted(reader, recipe.quantizer()), converted(reader, parse(ONNX).quantizer())
    program = reader.module()
    assert torch.int16 in {
        v for n in wide.graph.nodes for v in n.args if isinstance(v, torch.dtype)
    }
    exact = program(EXAMPLE)
    change = Change("form", ("linear",), "int16")
    changed = with_changes(parse(ONNX), reader, [change])
    assert changed.overrides[0].settings.activation_dtype == "int16"
    assert parse(recipe_text(changed)) == changed
    assert (wide(EXAMPLE) - exact).norm() < (usual(EXAMPLE) - exact).norm()
