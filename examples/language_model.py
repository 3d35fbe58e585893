"""A decoder of transformers, with its static cache, as two methods of one ExecuTorch program.

The prompt goes through ``prefill`` in pieces, then ``decode`` takes token by token; both share the
weights and the cache. Weights are quantized to 4 bits in groups, activations at run time, the table
of embeddings to 8 bits. Here the decoder is a tiny one with random weights, in bfloat16; a real one
is ``AutoModelForCausalLM.from_pretrained(name, dtype=torch.bfloat16)`` in its place.

    pip install "pt2q[executorch]" transformers
    python examples/language_model.py
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.integrations.executorch import TorchExportableModuleWithStaticCache

from pt2q import convert_pt2e, prepare_pt2e
from pt2q.debug import chunks, perplexity
from pt2q.deploy import executorch
from pt2q.quantizers import (
    ComposableQuantizer,
    EmbeddingQuantizer,
    WeightQuantizer,
    get_dynamic_activation_4bit_weight_config,
)

PIECE, CACHE, WORDS = 8, 64, 64
Run = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Figures:
    """Perplexities, and how many tokens were generated."""

    floating: float
    quantized: float
    in_runtime: float
    generated: int


def decoder() -> LlamaForCausalLM:
    """A Llama of one layer; head and embeddings are one tensor."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=CACHE,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval().to(torch.bfloat16)
    cache = {"batch_size": 1, "max_cache_len": CACHE, "device": "cpu"}
    model.generation_config = GenerationConfig(
        use_cache=True, cache_implementation="static", max_length=CACHE, cache_config=cache
    )
    return model


def inputs(tokens: Tensor, at: Tensor) -> dict[str, Tensor]:
    """How the wrapper of transformers is called."""
    return {"input_ids": tokens, "cache_position": at}


def logits_by(run: Run) -> Callable[[Tensor], Tensor]:
    """The logits of a text that goes through a prefill program piece by piece."""
    return lambda text: torch.cat([run(*piece).clone() for piece in chunks(text, PIECE)], 1)


def by_name(program: Any) -> Run:
    """A program called with tokens and positions."""
    return lambda tokens, at: program(**inputs(tokens, at))


def in_runtime_by(method: executorch.LoadedMethod) -> Run:
    """A method of the file called with tokens and positions."""
    return lambda tokens, at: method(tokens, at)[0]


def generate(run: Mapping[str, Run], prompt: Tensor, count: int) -> list[int]:
    """The likeliest tokens behind a prompt of whole pieces."""
    (*_, logits) = (run["prefill"](*piece) for piece in chunks(prompt, PIECE))
    found: list[int] = []
    for at in range(prompt.shape[1], prompt.shape[1] + count):
        found.append(int(logits[0, -1].argmax()))
        logits = run["decode"](torch.tensor([found[-1:]]), torch.tensor([at]))
    return found


def main() -> Figures:
    """Quantize, write, load, and compare."""
    model = TorchExportableModuleWithStaticCache(decoder())
    texts = [torch.randint(WORDS, (1, 4 * PIECE)) for _ in range(6)]
    sizes = {"prefill": PIECE, "decode": 1}
    examples = {n: inputs(texts[0][:, :k], torch.arange(k)) for n, k in sizes.items()}
    with torch.no_grad():
        programs = {
            name: torch.export.export(model, (), example) for name, example in examples.items()
        }
    weights = WeightQuantizer(get_dynamic_activation_4bit_weight_config(group_size=32))
    prepared = prepare_pt2e(programs, ComposableQuantizer([EmbeddingQuantizer(), weights]))
    with torch.no_grad():
        for text in texts[:4]:  # through the cache of the float model, in pieces
            logits_by(by_name(prepared["prefill"]))(text)
    converted = convert_pt2e(prepared)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # XNNPACK computes in float32
        program = executorch.lower(converted, kwargs=examples)
    loaded = program.load()
    run = {name: in_runtime_by(loaded.method(name)) for name in sizes}
    floating, quantized, in_runtime = (
        perplexity(logits_by(prefill), texts[4:])
        for prefill in (
            by_name(copy.deepcopy(model)),
            by_name(converted["prefill"]),
            run["prefill"],
        )
    )
    tokens = generate(run, texts[5], 16)
    print(f"perplexity: {floating:.2f} in bfloat16, {quantized:.2f} quantized, {in_runtime:.2f}")
    print(f"in the runtime, from a file of {len(program.buffer) / 1e3:.0f} kB: {tokens}")
    return Figures(floating, quantized, in_runtime, len(tokens))


if __name__ == "__main__":
    main()
