"""Models that fill a machine: a decoder of 1.2 billion parameters, a graph of 20,000 nodes.

    python benchmarks/large_models.py                       all of them; half an hour
    python benchmarks/large_models.py --only decoder-dynamic

Each has a process of its own, which exports it, prepares it, calibrates it on one input and
converts it. Seconds are those of the clock, on all cores; memory is what the process held with the
exported float model alone, and the most that it held from there on.
Results go to ``benchmarks/results/large_models.json``.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import measuring
import torch
from support.big_decoder import memory
from support.nets import residual_mlp
from zoo import OneOutput

import pt2q
from pt2q.quantizers import (
    WeightQuantizer,
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
    get_weight_only_quantization_config,
)

RESULT = measuring.RESULTS / "large_models.json"
GIB = 2**30


@dataclass(frozen=True)
class Case:
    """A model and how it is quantized.

    Args:
        model: makes the float model, with the inputs of a run.
        quantizer: makes the quantizer.
    """

    model: Callable[[], tuple[torch.nn.Module, tuple[Any, ...]]]
    quantizer: Callable[[], Any]


def decoder() -> tuple[torch.nn.Module, tuple[Any, ...]]:
    """A Llama with the sizes of Llama 3.2 1B, random weights, in bfloat16, on 32 tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=True,
        use_cache=False,
    )
    torch.set_default_dtype(torch.bfloat16)
    model = LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    return OneOutput(model, ("input_ids",)), (torch.arange(32).reshape(1, 32),)


def long_graph() -> tuple[torch.nn.Module, tuple[Any, ...]]:
    """Residual layers, 20,000 nodes when they are converted."""
    net = residual_mlp(1250)
    return net.build(0), net.inputs(1)


def _four_bits() -> Any:
    return WeightQuantizer(get_weight_only_quantization_config(bits=4, group_size=32))


def _xnnpack(is_dynamic: bool = False) -> Any:
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=is_dynamic)
    return XNNPACKQuantizer().set_global(config)


CASES = {
    "decoder-4-bit": Case(decoder, _four_bits),
    "decoder-dynamic": Case(decoder, partial(_xnnpack, is_dynamic=True)),
    "long-graph": Case(long_graph, _xnnpack),
}


def measured(name: str) -> dict[str, Any]:
    """Seconds of each stage and the memory of a case, in this process."""
    model, inputs = CASES[name].model()
    seconds: dict[str, float] = {}

    def timed(stage: str, call: Callable[..., Any], *args: Any) -> Any:
        start = time.perf_counter()
        made = call(*args)
        seconds[stage] = round(time.perf_counter() - start, 2)
        return made

    quantizer = CASES[name].quantizer()
    with torch.no_grad():
        program = timed("export", torch.export.export, model, inputs)
        parameters = sum(p.numel() for p in model.parameters())
        module = program.module(check_guards=False)
        timed("float run", module, *inputs)
        del model, program
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        before = memory("VmRSS")
        prepared = timed("prepare", pt2q.prepare_pt2e, module, quantizer)
        del module
        timed("calibrate", prepared, *inputs)
        converted = timed("convert", pt2q.convert_pt2e, prepared)
    return {
        "parameters": parameters,
        "nodes": len(converted.graph.nodes),
        "seconds": seconds,
        "weights_gib": _gib(converted),
        "before_gib": before / GIB,
        "peak_gib": memory("VmHWM") / GIB,
        "linear": quantizer.report().counts()["aten.linear.default"],
    }


def markdown(results: dict[str, Any]) -> str:
    """The table of the results."""
    head = ["model", "nodes", "linears", "prepare", "convert", "before", "weights", "peak"]
    return measuring.markdown_table(head, [_row(*item) for item in results.items()], figures=7)


def _row(name: str, found: dict[str, Any]) -> list[str]:
    done, left = found["linear"]
    seconds = [f"{found['seconds'][stage]:.1f} s" for stage in ("prepare", "convert")]
    memory = [f"{found[key]:.2f} GiB" for key in ("before_gib", "weights_gib", "peak_gib")]
    return [name, str(found["nodes"]), f"{done} of {done + left}", *seconds, *memory]


def _gib(module: torch.nn.Module) -> float:
    return sum(t.numel() * t.element_size() for t in module.state_dict().values()) / GIB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CASES, help="measure these, anew")
    parser.add_argument("--one", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        measuring.set_up()
        torch.set_num_threads(2)
        print(json.dumps(measured(options.one)))
        return
    results = measuring.read_json(RESULT).get("results", {})
    for name in options.only or CASES:
        command = [sys.executable, __file__, "--one", name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        results[name] = json.loads(done.stdout.splitlines()[-1])
        print(name, json.dumps(results[name]), flush=True)
        versions = measuring.versions("torch", "transformers")
        measuring.write_json(RESULT, {"versions": versions, "results": results})


if __name__ == "__main__":
    main()
