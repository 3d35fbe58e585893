"""A Llama of 309 million parameters in bfloat16, as checkpoints ship, quantized in several ways.

Its weights are random, its shape is that of a small checkpoint: 16 layers and a head of its own,
113 linear layers, exported by ``transformers`` with a static cache. Each way runs in a process of
its own and says how many of the linear layers and embeddings read an integer weight, what type they
compute in, how long preparing, calibrating and converting took, and the peak of memory.

    python benchmarks/checkpoint_decoder.py
    python benchmarks/checkpoint_decoder.py --markdown benchmarks/results/checkpoint_decoder.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measuring
import torch
from support.big_decoder import memory
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from pt2q import Quantizer, convert_pt2e, prepare_pt2e, quantize_pt2e, sqnr
from pt2q.ir import ops
from pt2q.ir.graph import get_constant
from pt2q.quantizers import (
    ComposableQuantizer,
    EmbeddingQuantizer,
    WeightQuantizer,
    XNNPACKQuantizer,
    get_dynamic_activation_4bit_weight_config,
    get_int16_activation_config,
    get_symmetric_quantization_config,
)

LENGTH, CACHE = 16, 64
# 309 million parameters; one that is quick, for the tests.
SIZES = {"309M": (1024, 4096, 16, 16, 4, 32000), "tiny": (32, 64, 2, 2, 1, 64)}


def _dynamic() -> Quantizer:
    return XNNPACKQuantizer(get_symmetric_quantization_config(is_dynamic=True))


QUANTIZERS: dict[str, Callable[[], Quantizer]] = {
    "weights in 8 bits": WeightQuantizer,
    "8da4w, groups of 32": lambda: WeightQuantizer(get_dynamic_activation_4bit_weight_config(32)),
    "dynamic": _dynamic,
    "dynamic and embedding": lambda: ComposableQuantizer([EmbeddingQuantizer(), _dynamic()]),
    "16-bit activations": lambda: WeightQuantizer(get_int16_activation_config()),
    "static": XNNPACKQuantizer,
}


def decoder(size: str) -> nn.Module:
    """The decoder in the wrapper of transformers, with its cache; in bfloat16."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
    from transformers.integrations.executorch import TorchExportableModuleWithStaticCache

    width, hidden, layers, heads, kv_heads, words = SIZES[size]
    config = LlamaConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=CACHE,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    cache = {"batch_size": 1, "max_cache_len": CACHE, "device": "cpu"}
    model.generation_config = GenerationConfig(
        use_cache=True, cache_implementation="static", max_length=CACHE, cache_config=cache
    )
    return TorchExportableModuleWithStaticCache(model)


def batch(size: str, seed: int) -> dict[str, Tensor]:
    """A prompt of random words, and its places."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(SIZES[size][-1], (1, LENGTH), generator=generator)
    return {"input_ids": words, "cache_position": torch.arange(LENGTH)}


def export(size: str, path: Path) -> int:
    """Save the decoder; say how many parameters it has."""
    model = decoder(size)
    with torch.no_grad():
        torch.export.save(torch.export.export(model, (), batch(size, 0)), path)
    return sum(parameter.numel() for parameter in model.parameters())


def reads_integers(model: GraphModule, node: Node) -> bool:
    """Whether the weight of a linear layer or the table of an embedding is stored in integers."""
    weight = node.args[0 if ops.is_op(node, ops.EMBEDDING) else 1]
    stored = ops.data_input(weight) if ops.is_op(weight, ops.DEQUANTIZE) else weight
    return stored.op == "get_attr" and not get_constant(model, stored).is_floating_point()


def counted(model: GraphModule) -> dict[str, Any]:
    """How many layers there are and are quantized, and in which types they compute."""
    found: dict[str, Any] = {}
    for name, kinds in (("linears", ops.LINEAR), ("embeddings", ops.EMBEDDING)):
        nodes = [node for node in model.graph.nodes if ops.is_op(node, kinds)]
        found[name] = [sum(reads_integers(model, node) for node in nodes), len(nodes)]
        found[f"{name}_types"] = sorted({str(node.meta["val"].dtype) for node in nodes})
    return found


def plain(program: torch.export.ExportedProgram, quantizer: Quantizer, size: str) -> Any:
    """Prepare, show two prompts, convert."""
    prepared = prepare_pt2e(program, quantizer)
    for seed in (1, 2):
        prepared(**batch(size, seed))
    return convert_pt2e(prepared)


def measure(name: str, path: Path, size: str, low: bool) -> dict[str, Any]:
    """One way of quantizing, in a process of its own."""
    quantizer = QUANTIZERS[name]()
    before, start = memory("VmRSS"), time.perf_counter()
    with torch.no_grad():
        if low:
            prompts = [batch(size, seed) for seed in (1, 2)]
            converted = quantize_pt2e(path, quantizer, prompts, low_memory=True)
        else:
            converted = plain(torch.export.load(path), quantizer, size)
        seconds, peak = time.perf_counter() - start, memory("VmHWM") - before
        unseen = batch(size, 9)
        found = converted(**unseen).float()
        expected = torch.export.load(path).module()(**unseen).float()
    return {
        **counted(converted),
        "seconds": round(seconds, 1),
        "peak_mb": round(peak / 1e6),
        "sqnr_db": round(float(sqnr(expected, found)), 1),
    }


def in_own_process(name: str, path: Path, size: str, low: bool) -> dict[str, Any]:
    """What `measure` finds there."""
    command = [sys.executable, __file__, "--one", name, "--program", str(path), "--size", size]
    done = subprocess.run(
        [*command, *(["--low-memory"] if low else [])], capture_output=True, text=True, check=True
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {"quantization": f"{name}, low memory" if low else name, **result}


def markdown(results: list[dict[str, Any]]) -> str:
    """The table of the page."""
    head = ["quantization", "linears", "embeddings", "SQNR", "seconds", "peak"]
    rows = [
        [
            r["quantization"],
            *(f"{r[kind][0]} of {r[kind][1]}" for kind in ("linears", "embeddings")),
            f"{r['sqnr_db']:.1f} dB",
            f"{r['seconds']:.0f}",
            f"{r['peak_mb'] / 1e3:.2f} GB",
        ]
        for r in results
    ]
    return measuring.markdown_table(head, rows, figures=5)


def run_all(size: str) -> dict[str, Any]:
    """Every way of quantizing, one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "decoder.pt2"
        parameters = export(size, path)
        ways = [(name, False) for name in QUANTIZERS] + [("dynamic and embedding", True)]
        results = [in_own_process(name, path, size, low) for name, low in ways]
        weights = path.stat().st_size
    return {"parameters": parameters, "program_bytes": weights, "results": results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    out = measuring.RESULTS / "checkpoint_decoder.json"
    parser.add_argument("-o", "--out", type=Path, default=out)
    parser.add_argument("--size", choices=SIZES, default="309M")
    parser.add_argument("--markdown", type=Path, help="print the table of a result file")
    parser.add_argument("--one", choices=QUANTIZERS, help=argparse.SUPPRESS)
    parser.add_argument("--program", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--low-memory", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    measuring.set_up()
    if options.markdown is not None:
        print(markdown(json.loads(options.markdown.read_text())["results"]))
    elif options.one is not None:
        print(json.dumps(measure(options.one, options.program, options.size, options.low_memory)))
    else:
        found = run_all(options.size)
        measuring.write_json(options.out, found)
        print(markdown(found["results"]))


if __name__ == "__main__":
    main()
