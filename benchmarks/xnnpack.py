"""XNNPACK end to end: every network static and dynamic, run by the ExecuTorch runtime.

    python benchmarks/xnnpack.py                       all networks; about ten minutes
    python benchmarks/xnnpack.py --models minilm vit_s16

Per network: SQNR of the runtime and of the q/dq graph against float, quantized operators left to
portable kernels, file sizes, latency of the int8 and the float program in turn; for the MiniLM
sentence encoder the cosine of embeddings with those of the float model, over held-out sentences.
Raw figures go to ``benchmarks/results/xnnpack.json``, the table to ``docs/xnnpack.md``.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import measuring
import torch
from measuring import first, markdown_table
from support import minilm
from support.nets import NETS

from pt2q import convert_pt2e, prepare_pt2e, sqnr
from pt2q.deploy import executorch
from pt2q.quantizers import XNNPACKQuantizer, get_symmetric_quantization_config

MODELS = ("mobilenet_v2", "resnet50", "vit_s16", "bert", "minilm")
RESULT = measuring.RESULTS / "xnnpack.json"
PAGE = measuring.ROOT / "docs" / "xnnpack.md"
CALIBRATION = 8
WITH_EXCEPTION = "dynamic, one projection in float"
"""MiniLM's most sensitive linear layer: its input has the largest outliers."""


def quantizer_of(kind: str) -> XNNPACKQuantizer:
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=kind != "static")
    quantizer = XNNPACKQuantizer().set_global(config)
    if kind == WITH_EXCEPTION:
        quantizer.set_module_name("encoder.layer.4.attention.self.value", None)
    return quantizer


def quantized(exported: Any, kind: str, batches: list[Any]) -> Any:
    prepared = prepare_pt2e(exported, quantizer_of(kind))
    if kind == "static":
        with torch.no_grad():
            for args, kwargs in batches:
                prepared(*args, **kwargs)
    return convert_pt2e(prepared)


def minilm_batches() -> tuple[Any, list[Any], list[Any]]:
    """The model, batches to calibrate on, and batches held out."""
    batches = [((), inputs) for inputs in minilm.encode(minilm.sentences())]
    return minilm.load(), batches[: minilm.CALIBRATION], batches[minilm.CALIBRATION :]


def net_batches(name: str) -> tuple[Any, list[Any], list[Any]]:
    """The model, batches to calibrate on, and batches held out."""
    net = NETS[name]
    held_out = 64 if name == "bert" else 4  # its output is a handful of numbers
    batches = [(net.inputs(1, seed=i), {}) for i in range(CALIBRATION + held_out)]
    return net.build(0), batches[:CALIBRATION], batches[CALIBRATION:]


def programs(name: str, kind: str) -> dict[str, Any]:
    """Everything needed to compare one network in one setting."""
    model, calibration, rest = minilm_batches() if name == "minilm" else net_batches(name)
    args, kwargs = calibration[0]
    with torch.no_grad():
        exported = torch.export.export(model, args, kwargs)
    converted = quantized(exported, kind, calibration)
    return {
        "model": model,
        "converted": converted,
        "held_out": rest,
        "float": executorch.lower(exported.module(), args, kwargs=kwargs),
        "int8": executorch.lower(converted, args, kwargs=kwargs),
    }


def outputs(found: dict[str, Any], loaded: Any) -> dict[str, list[Any]]:
    """What the float model, the graph and the runtime give for what was held out."""
    rows: dict[str, list[Any]] = {"float": [], "eager": [], "runtime": [], "mask": []}
    with torch.no_grad():
        for args, kwargs in found["held_out"]:
            rows["float"].append(first(found["model"](*args, **kwargs)))
            rows["eager"].append(first(found["converted"](*args, **kwargs)))
            rows["runtime"].append(loaded(*args, *kwargs.values())[0])
            rows["mask"].append(kwargs.get("attention_mask"))
    return rows


def compare(name: str, kind: str) -> dict[str, Any]:
    found = programs(name, kind)
    int8, loaded, reference = found["int8"], found["int8"].load(), found["float"].load()
    rows = outputs(found, loaded)
    floats, eager, runtime = (torch.stack(rows[key]) for key in ("float", "eager", "runtime"))
    args, kwargs = found["held_out"][0]
    latency = executorch.measure_latency(reference, loaded, (*args, *kwargs.values()), repeats=15)
    result = {
        "eager_db": float(sqnr(floats, eager)),
        "runtime_db": float(sqnr(floats, runtime)),
        "delegation": str(int8.delegation),
        "quantized_left": list(int8.delegation.quantized_left),
        "float_mb": len(found["float"].buffer) / 1e6,
        "int8_mb": len(int8.buffer) / 1e6,
        "float_ms": latency[0],
        "int8_ms": latency[1],
    }
    return result | (cosines(rows) if name == "minilm" else {})


def cosines(rows: dict[str, Any]) -> dict[str, float]:
    """Mean cosine of embeddings with those of the float model."""

    def mean(kind: str) -> float:
        pairs = zip(rows["float"], rows[kind], rows["mask"], strict=True)
        values = [
            (minilm.embedding(f, m) * minilm.embedding(q, m)).sum().item() for f, q, m in pairs
        ]
        return sum(values) / len(values)

    return {"eager_cosine": mean("eager"), "runtime_cosine": mean("runtime")}


INTRODUCTION = """# XNNPACK, network by network

Made by `python benchmarks/xnnpack.py`; random weights with settled statistics, but for MiniLM,
which is the real sentence encoder as Hugging Face ships it. SQNR in dB against the float model on
held-out inputs: of the q/dq graph run eagerly, and of the `.pte` run by the ExecuTorch runtime.
Times are medians of the two programs run in turn, in milliseconds, on two x86-64 cores.

"""


def page(results: dict[str, Any]) -> str:
    head = ["network", "", "q/dq", "runtime", "MB float", "MB int8", "ms float", "ms int8"]
    rows = [cells(name, kind, r) for name, kinds in results.items() for kind, r in kinds.items()]
    text = INTRODUCTION + markdown_table([*head, "quantized, not delegated"], rows) + "\n"
    if "minilm" not in results:
        return text
    found = results["minilm"].items()
    rows = [[kind, f"{r['eager_cosine']:.4f}", f"{r['runtime_cosine']:.4f}"] for kind, r in found]
    text += "\nMean cosine of MiniLM's embeddings with float, 32 held-out sentences:\n\n"
    return text + markdown_table(["", "q/dq", "runtime"], rows) + "\n"


def cells(name: str, kind: str, r: dict[str, Any]) -> list[str]:
    found = [name, kind, f"{r['eager_db']:.1f}", f"{r['runtime_db']:.1f}"]
    found += [f"{r['float_mb']:.1f}", f"{r['int8_mb']:.1f}"]
    found += [f"{r['float_ms']:.2f}", f"{r['int8_ms']:.2f}"]
    return [*found, ", ".join(r["quantized_left"]) or "none"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--no-write", action="store_true")
    options = parser.parse_args()
    measuring.set_up()
    results: dict[str, Any] = {}
    for name in options.models:
        kinds = ("static", "dynamic", WITH_EXCEPTION) if name == "minilm" else ("static", "dynamic")
        results[name] = {kind: compare(name, kind) for kind in kinds}
        print(name, json.dumps(results[name], indent=1), flush=True)
    if not options.no_write:
        measuring.write_json(RESULT, results)
        PAGE.write_text(page(results))


if __name__ == "__main__":
    main()
