"""Decoders of transformers through its own export helpers, prefill and decode, in bfloat16."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import pytest
import torch
from support.seeds import seeded
from torch import Tensor, nn

from pt2q import QuantGraphModule, Quantizer, convert_pt2e, prepare_pt2e, sqnr
from pt2q.debug import chunks
from pt2q.deploy import executorch
from pt2q.errors import ComputesInFloat32Warning, LoweringError
from pt2q.quantizers import (
    ComposableQuantizer,
    EmbeddingQuantizer,
    StateQuantizer,
    WeightQuantizer,
    XNNPACKQuantizer,
    get_dynamic_activation_4bit_weight_config,
    get_int16_activation_config,
)

PIECE, CACHE, WORDS = 8, 32, 64
SIZES = {"prefill": PIECE, "decode": 1}
SHAPE = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": CACHE,
    "tie_word_embeddings": True,
}
Run = Callable[[Tensor, Tensor], Tensor]
Programs = dict[str, QuantGraphModule]

pytestmark = pytest.mark.slow


# Importing transformers takes a second of each process that collects tests: it is done when run.


def ready(model: nn.Module) -> nn.Module:
    from transformers import GenerationConfig

    cache = {"batch_size": 1, "max_cache_len": CACHE, "device": "cpu"}
    model.generation_config = GenerationConfig(
        use_cache=True, cache_implementation="static", max_length=CACHE, cache_config=cache
    )
    return model.eval().to(torch.bfloat16)


def static_cache() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.integrations.executorch import TorchExportableModuleWithStaticCache

    config = LlamaConfig(num_hidden_layers=1, **SHAPE)
    return TorchExportableModuleWithStaticCache(ready(LlamaForCausalLM(config)))


def hybrid_cache() -> nn.Module:
    """Layers that look at a window, and at all; what that helper exports is the module inside."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig
    from transformers.integrations.executorch import TorchExportableModuleForDecoderOnlyLM

    kinds = ["sliding_attention", "full_attention"]
    config = Gemma3TextConfig(
        num_hidden_layers=2, head_dim=16, sliding_window=CACHE, layer_types=kinds, **SHAPE
    )
    return TorchExportableModuleForDecoderOnlyLM(ready(Gemma3ForCausalLM(config))).model


DECODERS = {"static": static_cache, "hybrid": hybrid_cache}


@functools.cache
def decoder(kind: str) -> nn.Module:
    with seeded(0):
        return DECODERS[kind]()


def text(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(WORDS, (1, CACHE), generator=generator)


def inputs(words: Tensor, at: Tensor) -> dict[str, Tensor]:
    return {"input_ids": words, "cache_position": at}


EXAMPLES = {n: inputs(text(0)[:, :k], torch.arange(k)) for n, k in SIZES.items()}


@functools.cache
def programs(kind: str) -> dict[str, torch.export.ExportedProgram]:
    model = copy.deepcopy(decoder(kind))  # export leaves a mark on what the cache counts
    with torch.no_grad():
        return {
            name: torch.export.export(model, (), example, strict=False)
            for name, example in EXAMPLES.items()
        }


def quantized(kind: str, quantizer: Quantizer) -> Programs:
    """Calibrated on texts through the cache: prompts in pieces, a step behind each."""
    prepared = prepare_pt2e(programs(kind), quantizer)
    with torch.no_grad():
        for seed in range(1, 5):
            logits(prepared, seed)
    return convert_pt2e(prepared, fold_quantize_into_mutable_buffers=True)


def logits(models: dict[str, nn.Module], seed: int) -> Tensor:
    """Of whole pieces of a text but the last, and of the last word by word."""
    *pieces, (words, at) = chunks(text(seed), PIECE)
    found = [models["prefill"](**inputs(*piece)).clone() for piece in pieces]
    for place in range(PIECE):
        step = inputs(words[:, place : place + 1], at[place : place + 1])
        found.append(models["decode"](**step).clone())
    return torch.cat(found, 1).float()


def expected(kind: str) -> Tensor:
    model = copy.deepcopy(decoder(kind))
    with torch.no_grad():
        return logits({"prefill": model, "decode": model}, 9)


QUANTIZERS: dict[str, tuple[Callable[[], Quantizer], float]] = {
    "int8, cache too": (lambda: StateQuantizer(XNNPACKQuantizer()), 12),
    "8da4w": (
        lambda: ComposableQuantizer(
            [
                EmbeddingQuantizer(),
                WeightQuantizer(get_dynamic_activation_4bit_weight_config(32)),
            ]
        ),
        8,
    ),
}


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("kind", DECODERS)
def test_the_runtime_computes_what_the_graph_does(kind: str, name: str) -> None:
    quantizer, least = QUANTIZERS[name]
    made = quantized(kind, quantizer())
    with pytest.warns(ComputesInFloat32Warning):
        loaded = executorch.lower(made, kwargs=EXAMPLES).load()
    in_runtime = {n: by_name(loaded.method(n)) for n in SIZES}
    found = logits(in_runtime, 9)
    with torch.no_grad():
        in_graph = logits(copy.deepcopy(made), 9)
    assert sqnr(expected(kind), in_graph) > least
    assert sqnr(expected(kind), found) > least


def by_name(method: executorch.LoadedMethod) -> Callable[..., Tensor]:
    return lambda input_ids, cache_position: method(input_ids, cache_position)[0]


@pytest.mark.filterwarnings("ignore::pt2q.errors.ComputesInFloat32Warning")
@pytest.mark.parametrize("kind", DECODERS)
def test_16_bits_are_computed_in_pytorch_and_refused_by_xnnpack(kind: str) -> None:
    made = quantized(kind, WeightQuantizer(get_int16_activation_config()))
    with pytest.raises(LoweringError, match=r"is int16, and XNNPACK computes in int8 alone"):
        executorch.lower(made, kwargs=EXAMPLES)
    with torch.no_grad():
        assert sqnr(expected(kind), logits(made, 9)) > 18
