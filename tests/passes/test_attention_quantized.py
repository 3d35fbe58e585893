"""The products of attention are quantized where the backend can."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from support.laws import assert_laws
from support.nodes import nodes_of
from torch import Tensor, nn
from torch.nn import functional as F

from pt2q import convert_pt2e, prepare_pt2e, prepare_qat_pt2e, sqnr
from pt2q.ir import ops
from pt2q.ir.module import QuantGraphModule
from pt2q.passes import verified_passes
from pt2q.quantizers import OnnxQDQQuantizer, XNNPACKQuantizer, get_symmetric_quantization_config

# torch says so of every recurrent layer it exports.
pytestmark = pytest.mark.filterwarnings("ignore:The tensor attributes self")


class SmallAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (2, 8)).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


@functools.cache
def small_attention() -> tuple[nn.Module, torch.export.ExportedProgram, list[Tensor]]:
    torch.manual_seed(0)
    model = SmallAttention().eval()
    batches = [torch.randn(2, 6, 16) for _ in range(4)]
    return model, torch.export.export(model, (batches[0],)), batches


def quantized(quantizer: Any) -> tuple[QuantGraphModule, float]:
    model, program, batches = small_attention()
    with verified_passes(), torch.no_grad():
        ready = prepare_pt2e(program, quantizer)
        for x in batches:
            ready(x)
        done = convert_pt2e(ready)
        assert_laws(done, converted=True)
        return done, float(sqnr(model(batches[0]), done(batches[0])))


def products(model: QuantGraphModule) -> list[list[bool]]:
    """Of each matrix product, which operands come from a dequantize."""
    nodes = nodes_of(model, ops.MATMUL)
    return [[ops.is_op(n, ops.DEQUANTIZE) for n in node.all_input_nodes] for node in nodes]


@pytest.mark.parametrize("make", [OnnxQDQQuantizer.onnxruntime, OnnxQDQQuantizer.tensorrt])
def test_products_of_attention_are_quantized_where_the_backend_can(make: Any) -> None:
    """By itself the one whose result is read quantized; the scores too if they are asked for."""
    done, quality = quantized(make())
    assert products(done)[1] == [True, True] and quality > 30
    quantizer = make()
    (config,) = quantizer.selection.configs()
    quantizer.set_operator_type(torch.ops.aten.matmul.default, config).set_global(config)
    done, quality = quantized(quantizer)
    assert products(done) == [[True, True], [True, True]] and quality > 30
    assert quantizer.report().counts()["aten.matmul.default"] == (2, 0)


def test_attention_stays_whole_where_the_backend_multiplies_in_float() -> None:
    quantizer = XNNPACKQuantizer()
    done, quality = quantized(quantizer)
    assert len(nodes_of(done, ops.SDPA)) == 1
    row = next(r for r in quantizer.report() if "attention" in r.operator)
    assert "multiplies two activations in float" in row.how
    assert quality > 30


def test_decompositions_are_options() -> None:
    done, quality = quantized(OnnxQDQQuantizer.onnxruntime().set_decompositions(attention=False))
    assert len(nodes_of(done, ops.SDPA)) == 1
    done, quality = quantized(XNNPACKQuantizer().set_decompositions(attention=True))
    assert products(done) == [[False, False], [False, False]] and quality > 30
    first, second = XNNPACKQuantizer().set_decompositions(max_steps=3), XNNPACKQuantizer()
    assert first.decompositions.recurrent and first.decompositions.max_steps == 3
    assert second.decompositions.max_steps == 64


def test_attention_trains_taken_apart() -> None:
    model, program, batches = small_attention()
    config = get_symmetric_quantization_config(is_qat=True)
    quantizer = XNNPACKQuantizer().set_global(config).set_decompositions(attention=True)
    ready = prepare_qat_pt2e(program, quantizer).train()
    ready(batches[0]).square().sum().backward()
    done = convert_pt2e(ready)
    assert sqnr(model(batches[0]), done(batches[0])) > 20
