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
import os
import sys
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

import torch  # noqa: E402
from support import minilm  # noqa: E402
from support.nets import NETS  # noqa: E402

from pt2q import convert_pt2e, prepare_pt2e, sqnr  # noqa: E402
from pt2q.deploy import executorch  # noqa: E402
from pt2q.quantizers import XNNPACKQuantizer, get_symmetric_quantization_config  # noqa: E402

MODELS = ("mobilenet_v2", "resnet50", "vit_s16", "bert", "minilm")
RESULT = HERE / "results" / "xnnpack.json"
PAGE = HERE.parent / "docs" / "xnnpack.md"
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


def first(outputs: Any) -> torch.Tensor:
    while not isinstance(outputs, torch.Tensor):
        outputs = next(iter(outputs.values())) if isinstance(outputs, dict) else outputs[0]
    return outputs


def programs(name: str, kind: str) -> dict[str, Any]:
    """Everything needed to compare one network in one setting."""
    if name == "minilm":
        model = minilm.load()
        batches = [((), b) for b in minilm.encode(minilm.sentences())]
        calibration, rest = batches[: minilm.CALIBRATION], batches[minilm.CALIBRATION :]
        exported = minilm.export(model, batches[0][1])
    else:
        net = NETS[name]
        model = net.build(0)
        held_out = 64 if name == "bert" else 4  # its output is a handful of numbers
        batches = [(net.inputs(1, seed=i), {}) for i in range(CALIBRATION + held_out)]
        calibration, rest = batches[:CALIBRATION], batches[CALIBRATION:]
        exported = torch.export.export(model, batches[0][0])
    converted = quantized(exported, kind, calibration)
    args, kwargs = batches[0]
    return {
        "model": model,
        "converted": converted,
        "held_out": rest,
        "float": executorch.lower(exported.module(), args, kwargs=kwargs),
        "int8": executorch.lower(converted, args, kwargs=kwargs),
    }


def compare(name: str, kind: str) -> dict[str, Any]:
    found = programs(name, kind)
    loaded, reference = found["int8"].load(), found["float"].load()
    rows = {"float": [], "eager": [], "runtime": [], "mask": []}
    with torch.no_grad():
        for args, kwargs in found["held_out"]:
            flat = (*args, *kwargs.values())
            rows["float"].append(first(found["model"](*args, **kwargs)))
            rows["eager"].append(first(found["converted"](*args, **kwargs)))
            rows["runtime"].append(loaded(*flat)[0])
            rows["mask"].append(kwargs.get("attention_mask"))
    stacked = {k: torch.stack(v) for k, v in rows.items() if k != "mask"}
    args, kwargs = found["held_out"][0]
    latency = executorch.measure_latency(reference, loaded, (*args, *kwargs.values()), repeats=15)
    result = {
        "eager_db": float(sqnr(stacked["float"], stacked["eager"])),
        "runtime_db": float(sqnr(stacked["float"], stacked["runtime"])),
        "delegation": str(found["int8"].delegation),
        "quantized_left": list(found["int8"].delegation.quantized_left),
        "float_mb": len(found["float"].buffer) / 1e6,
        "int8_mb": len(found["int8"].buffer) / 1e6,
        "float_ms": latency[0],
        "int8_ms": latency[1],
    }
    if name == "minilm":
        result.update(cosines(rows))
    return result


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
    head += ["quantized, not delegated"]
    lines = [INTRODUCTION + "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, kinds in results.items():
        for kind, r in kinds.items():
            cells = [name, kind, f"{r['eager_db']:.1f}", f"{r['runtime_db']:.1f}"]
            cells += [f"{r['float_mb']:.1f}", f"{r['int8_mb']:.1f}"]
            cells += [f"{r['float_ms']:.2f}", f"{r['int8_ms']:.2f}"]
            cells += [", ".join(r["quantized_left"]) or "none"]
            lines.append("| " + " | ".join(cells) + " |")
    if "minilm" in results:
        lines += ["", "Mean cosine of MiniLM's embeddings with float, 32 held-out sentences:", ""]
        lines += ["| | q/dq | runtime |", "|---|---|---|"]
        for kind, r in results["minilm"].items():
            lines.append(f"| {kind} | {r['eager_cosine']:.4f} | {r['runtime_cosine']:.4f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--no-write", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for name in options.models:
        kinds = ("static", "dynamic", WITH_EXCEPTION) if name == "minilm" else ("static", "dynamic")
        results[name] = {kind: compare(name, kind) for kind in kinds}
        print(name, json.dumps(results[name], indent=1), flush=True)
    if not options.no_write:
        RESULT.write_text(json.dumps(results, indent=1) + "\n")
        PAGE.write_text(page(results))


if __name__ == "__main__":
    main()
