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
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

import torch  # noqa: E402
from support import minilm  # noqa: E402
from support.nets import NETS  # noqa: E402
from torch import Tensor  # noqa: E402

from pt2q import convert_pt2e, prepare_pt2e, sqnr  # noqa: E402
from pt2q.demo.digits import load_digits  # noqa: E402
from pt2q.demo.net import load_checkpoint  # noqa: E402
from pt2q.quantizers import (  # noqa: E402
    OnnxQDQQuantizer,
    X86InductorQuantizer,
    XNNPACKQuantizer,
    get_default_x86_inductor_quantization_config,
    get_symmetric_quantization_config,
)

RESULT = HERE / "results" / "roads.json"
PAGE = HERE.parent / "docs" / "roads.md"
REPEATS = 15


def first(outputs: Any) -> Tensor:
    while not isinstance(outputs, Tensor):
        outputs = next(iter(outputs.values())) if isinstance(outputs, dict) else outputs[0]
    return outputs


# ------------------------------------------------------------------ networks


@dataclass
class Subject:
    """A float model with inputs: (args, kwargs) to calibrate with, and held out."""

    model: torch.nn.Module
    calibration: list[Any]
    held_out: list[Any]
    quality: Callable[[list[Tensor], list[Tensor]], dict[str, float]]


def random_net(name: str) -> Subject:
    net = NETS[name]
    batches = [((net.inputs(1, seed=i)), {}) for i in range(12)]
    return Subject(net.build(0), batches[:8], batches[8:], lambda f, q: {})


def digits() -> Subject:
    data = load_digits()
    labels = data.held_out_labels

    def quality(floats: list[Tensor], results: list[Tensor]) -> dict[str, float]:
        def right(outputs: list[Tensor]) -> float:
            guesses = torch.stack([o.argmax() for o in outputs])
            return 100 * float((guesses == labels).float().mean())

        return {"accuracy": right(results), "float_accuracy": right(floats)}

    held_out = [((x,), {}) for x in data.held_out.split(1)]
    return Subject(
        load_checkpoint(), [((x,), {}) for x in data.train[:64].split(1)], held_out, quality
    )


def sentence_encoder() -> Subject:
    batches = [((), inputs) for inputs in minilm.encode(minilm.sentences())]
    masks = [inputs["attention_mask"] for _, inputs in batches[minilm.CALIBRATION :]]

    def quality(floats: list[Tensor], results: list[Tensor]) -> dict[str, float]:
        pairs = zip(floats, results, masks, strict=True)
        cosines = [(minilm.embedding(f, m) * minilm.embedding(q, m)).sum() for f, q, m in pairs]
        return {"cosine": float(torch.stack(cosines).mean())}

    count = minilm.CALIBRATION
    return Subject(minilm.load(), batches[:count], batches[count:], quality)


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "digits": digits,
    "mobilenet_v2": lambda: random_net("mobilenet_v2"),
    "resnet50": lambda: random_net("resnet50"),
    "minilm": sentence_encoder,
}


# ------------------------------------------------------------------ roads

Run = Callable[..., Any]


@dataclass
class Built:
    """A program of a runtime, its size in bytes, and what it says about its kernels."""

    run: Run
    size: int
    kernels: str = ""


def constants(model: torch.nn.Module) -> int:
    tensors = {t.data_ptr(): t.nbytes for t in (*model.parameters(), *model.buffers())}
    return sum(tensors.values())


def to_xnnpack(model: Any, args: Any, kwargs: Any, folder: Path) -> Built:
    from pt2q.deploy import executorch

    program = executorch.lower(model, args, kwargs=kwargs)
    loaded = program.load()
    return Built(loaded, len(program.buffer), str(program.delegation).splitlines()[0])


def to_inductor(model: Any, args: Any, kwargs: Any, folder: Path) -> Built:
    from pt2q.deploy import inductor

    compiled = inductor.compile(model)
    compiled(*args, **kwargs)
    names = list(kwargs)

    def run(*flat: Tensor) -> Any:
        return compiled(**dict(zip(names, flat, strict=True))) if names else compiled(*flat)

    return Built(run, constants(compiled.model), str(compiled.fusion).splitlines()[0])


def to_onnxruntime(model: Any, args: Any, kwargs: Any, folder: Path) -> Built:
    from pt2q.deploy import onnx

    info = onnx.export(model, args, folder / f"{time.time_ns()}.onnx", kwargs=kwargs)
    session = onnx.load(info.path, threads=1)
    names = sorted(session.kernels().items(), key=lambda item: -item[1])
    words = [f"{count} {name}" for name, count in names if "Q" in name or "Integer" in name]
    return Built(session, info.size, ", ".join(words))


def to_openvino(model: Any, args: Any, kwargs: Any, folder: Path) -> Built:
    import openvino

    from pt2q.deploy import onnx

    info = onnx.export(model, args, folder / f"{time.time_ns()}.onnx", kwargs=kwargs)
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(info.path), "CPU", settings)

    def run(*flat: Tensor) -> Any:
        return torch.from_numpy(compiled([x.numpy() for x in flat])[0].copy())

    return Built(run, info.size)


def xnnpack(dynamic: bool = False) -> Any:
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=dynamic)
    return XNNPACKQuantizer().set_global(config)


def x86(dynamic: bool = False) -> Any:
    config = get_default_x86_inductor_quantization_config(is_dynamic=dynamic)
    return X86InductorQuantizer().set_global(config)


ROADS: dict[str, tuple[Callable[[], Any], Callable[..., Built]]] = {
    "xnnpack": (xnnpack, to_xnnpack),
    "xnnpack dynamic": (lambda: xnnpack(True), to_xnnpack),
    "inductor": (x86, to_inductor),
    "inductor dynamic": (lambda: x86(True), to_inductor),
    "onnxruntime": (OnnxQDQQuantizer.onnxruntime, to_onnxruntime),
    "onnxruntime dynamic": (lambda: OnnxQDQQuantizer.onnxruntime(is_dynamic=True), to_onnxruntime),
    "openvino": (OnnxQDQQuantizer.openvino, to_openvino),
    "tensorrt preset, onnxruntime": (OnnxQDQQuantizer.tensorrt, to_onnxruntime),
    "tensorrt preset, openvino": (OnnxQDQQuantizer.tensorrt, to_openvino),
}


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


def travel(subject: Subject, road: str, floats: list[Tensor], folder: Path) -> dict[str, Any]:
    """Quantize a model, take one road, and measure."""
    make, build = ROADS[road]
    args, kwargs = subject.calibration[0]
    exported = torch.export.export(subject.model, args, kwargs)
    prepared = prepare_pt2e(exported, make())
    if "dynamic" not in road:
        for batch_args, batch_kwargs in subject.calibration:
            prepared(*batch_args, **batch_kwargs)
    converted = convert_pt2e(prepared)
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
    lines = [INTRODUCTION + "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, roads in results.items():
        for road, r in roads.items():
            ratio = r["float_ms"] / r["int8_ms"]
            cells = [name, road, f"{r['qdq_db']:.0f}", f"{r['float_db']:.1f}", task(r)]
            cells += [f"{r['float_mb']:.1f} -> {r['int8_mb']:.1f}", f"{r['float_ms']:.2f}"]
            cells += [f"{r['int8_ms']:.2f}", f"{ratio:.2f}"]
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "What the runtimes say of their int8 kernels:", ""]
    lines += [
        f"- {name}, {road}: {r['kernels']}"
        for name, roads in results.items()
        for road, r in roads.items()
        if r["kernels"]
    ]
    return "\n".join(lines) + "\n"


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
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
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
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(ordered, indent=1) + "\n")
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(ordered))


if __name__ == "__main__":
    main()
