"""Every road from a converted model to a runtime, end to end, on four networks.

    python benchmarks/roads.py                                   all of it; about half an hour
    python benchmarks/roads.py --models digits --roads onnxruntime

Per network and road: agreement of the runtime with the q/dq graph, accuracy or cosine against the
float model, size, and latency of int8 and float in the same runtime, run in turn. MobileNetV2 and
ResNet-50 have random weights with settled statistics; the digits network is trained, and MiniLM is
the real sentence encoder. Figures are merged into ``benchmarks/results/roads.json``; the table goes
to ``docs/roads.md``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import measuring
import torch
from measuring import first, markdown_table
from road_networks import SUBJECTS, Subject
from road_programs import ROADS, Run
from torch import Tensor

from pt2q import convert_pt2e, prepare_pt2e, sqnr

RESULT = measuring.RESULTS / "roads.json"
PAGE = measuring.ROOT / "docs" / "roads.md"
REPEATS = 15


def latencies(a: Run, b: Run, inputs: tuple[Tensor, ...]) -> tuple[float, float]:
    """Median milliseconds of two programs run in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(REPEATS + 2):
        for which in (0, 1) if turn % 2 else (1, 0):
            start = time.perf_counter()
            (a, b)[which](*inputs)
            if turn > 1:
                times[which].append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[0]), 1e3 * statistics.median(times[1])


def quantized(subject: Subject, road: str) -> tuple[Any, Any]:
    """The exported program and the converted model."""
    args, kwargs = subject.calibration[0]
    exported = torch.export.export(subject.model, args, kwargs)
    prepared = prepare_pt2e(exported, ROADS[road][0]())
    for batch_args, batch_kwargs in subject.calibration if "dynamic" not in road else ():
        prepared(*batch_args, **batch_kwargs)
    return exported, convert_pt2e(prepared)


def travel(subject: Subject, road: str, floats: list[Tensor], folder: Path) -> dict[str, Any]:
    """Quantize a model, take one road, and measure."""
    exported, converted = quantized(subject, road)
    args, kwargs = subject.calibration[0]
    build = ROADS[road][1]
    int8 = build(converted, args, kwargs, folder)
    plain = build(exported.module(check_guards=False), args, kwargs, folder)
    some = [(*a, *k.values()) for a, k in subject.held_out]
    results = [first(int8.run(*flat)) for flat in some]
    eager = [first(converted(*a, **k)) for a, k in subject.held_out[:32]]
    float_ms, int8_ms = latencies(plain.run, int8.run, some[0])
    return {
        "qdq_db": float(sqnr(torch.stack(eager), torch.stack(results[:32]))),
        "float_db": float(sqnr(torch.stack(floats), torch.stack(results))),
        "float_mb": plain.size / 1e6,
        "int8_mb": int8.size / 1e6,
        "float_ms": float_ms,
        "int8_ms": int8_ms,
        "kernels": int8.kernels,
        **subject.quality(floats, results),
    }


# ------------------------------------------------------------------ the page

INTRODUCTION = """# Roads from a converted model

Made by `python benchmarks/roads.py` on one thread of an x86-64 machine with VNNI instructions.
MobileNetV2 and ResNet-50 have random weights with settled statistics; the digits network is trained
and MiniLM is the real sentence encoder. *Agreement* compares the runtime with the q/dq graph run
eagerly, *SQNR* with the float model, both in dB on held-out inputs; fused kernels round once less
than the q/dq graph, which deep networks amplify, so that agreement is bounded by the SQNR. Times
are medians of int8 and float run in turn, in milliseconds: trust the ratio. Inductor's size is that
of the tensors. The TensorRT preset is run by other runtimes, which fuse less of its symmetric int8.

"""


def page(results: dict[str, Any]) -> str:
    head = ["network", "road", "agreement", "SQNR", "task", "MB", "ms float", "ms int8", "ratio"]
    found = [(name, road, r) for name, roads in results.items() for road, r in roads.items()]
    table = markdown_table(head, [cells(*one) for one in found])
    kernels = [f"- {name}, {road}: {r['kernels']}\n" for name, road, r in found if r["kernels"]]
    says = "\n\nWhat the runtimes say of their int8 kernels:\n\n"
    return INTRODUCTION + table + says + "".join(kernels)


def cells(name: str, road: str, r: dict[str, Any]) -> list[str]:
    found = [name, road, f"{r['qdq_db']:.0f}", f"{r['float_db']:.1f}", task(r)]
    found += [f"{r['float_mb']:.1f} -> {r['int8_mb']:.1f}", f"{r['float_ms']:.2f}"]
    return [*found, f"{r['int8_ms']:.2f}", f"{r['float_ms'] / r['int8_ms']:.2f}"]


def task(result: dict[str, Any]) -> str:
    if "accuracy" in result:
        return f"{result['accuracy']:.2f}% ({result['float_accuracy']:.2f}%)"
    return f"cosine {result['cosine']:.4f}" if "cosine" in result else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(SUBJECTS))
    parser.add_argument("--roads", nargs="+", default=None)
    parser.add_argument("--no-write", action="store_true")
    options = parser.parse_args()
    measuring.set_up()
    torch.set_grad_enabled(False)
    results = measuring.read_json(RESULT)
    for name in options.models:
        subject = SUBJECTS[name]()
        floats = [first(subject.model(*a, **k)) for a, k in subject.held_out]
        wanted = options.roads or [r for r in ROADS if name == "minilm" or "dynamic" not in r]
        for road in wanted:
            with tempfile.TemporaryDirectory() as folder:
                found = travel(subject, road, floats, Path(folder))
            results.setdefault(name, {})[road] = found
            print(name, road, json.dumps(found), flush=True)
            if not options.no_write:
                write(results)


def write(results: dict[str, Any]) -> None:
    ordered = {
        name: {road: results[name][road] for road in ROADS if road in results[name]}
        for name in SUBJECTS
        if name in results
    }
    measuring.write_json(RESULT, ordered)
    PAGE.write_text(page(ordered))


if __name__ == "__main__":
    main()
