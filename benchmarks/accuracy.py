"""What post-training algorithms win back: error, seconds and memory, network by network.

    python benchmarks/accuracy.py                        everything; more than an hour on one core
    python benchmarks/accuracy.py --works decoder-4-g32 --methods plain gptq
    python benchmarks/accuracy.py --markdown benchmarks/results/accuracy.json

What is run is put beside what earlier runs have written. Nothing that scores was calibrated on.
Seconds are those of the algorithms alone (CPU, one thread), memory is by how much the peak of the
process grew meanwhile. ``-`` names no algorithm: plain prepare, calibrate and convert.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import measuring
import torch
from support import minilm
from torch import Tensor, nn
from torch.nn import functional as F

from pt2q import QuantGraphModule, Quantizer, convert_pt2e, prepare_pt2e, sqnr
from pt2q.algorithms import (
    AWQ,
    GPTQ,
    AdaRound,
    BiasCorrection,
    CrossLayerEqualization,
    Improvement,
    ScaleSearch,
    SmoothQuant,
    improve_and_convert,
    report_of,
)
from pt2q.demo.decoder import CONTEXT, DECODER, ByteDecoder
from pt2q.demo.digits import load_digits
from pt2q.demo.net import CHECKPOINT, DigitNet, load_checkpoint
from pt2q.demo.text import load_text, windows
from pt2q.demo.vision import MOBILENET_V3, VIT, DigitMobileNetV3, DigitViT
from pt2q.deploy import executorch, onnx
from pt2q.quantizers import (
    OnnxQDQQuantizer,
    WeightQuantizer,
    XNNPACKQuantizer,
    get_dynamic_activation_4bit_weight_config,
    get_weight_only_quantization_config,
)

RESULT = measuring.RESULTS / "accuracy.json"
Scores = dict[str, float]
Runtime = Callable[[Any, dict[str, Tensor], Any, Path], Any]


@dataclass(frozen=True)
class Work:
    """A float network, how it is quantized, and what is read off the result.

    Args:
        program: exported.
        quantizer: made anew for every method.
        batches: to calibrate on.
        score: of any model, by name.
        methods: those that make sense.
    """

    program: Any
    quantizer: Callable[[], Any]
    batches: list[Any]
    score: Callable[[Any], Scores]
    methods: tuple[str, ...]


METHODS: dict[str, tuple[Any, ...] | str] = {
    "-": (),
    "scale_search": (ScaleSearch(),),
    "awq": (AWQ(),),
    "gptq": (GPTQ(),),
    "awq, gptq": (AWQ(), GPTQ()),
    "adaround": (AdaRound(),),
    "adaround, blocks": (AdaRound(block=4, steps=300),),
    "equalization": (CrossLayerEqualization(),),
    "smooth_quant": (SmoothQuant(),),
    "bias_correction": (BiasCorrection(),),
    "smooth_quant, gptq": (SmoothQuant(), GPTQ()),
    "smooth_quant, ranges": (SmoothQuant(), ScaleSearch(weights=False)),
    "smooth_quant, bias_correction": (SmoothQuant(), BiasCorrection()),
    "gptq one way": (GPTQ(both_ways=False),),
    "awq, gptq one way": (AWQ(), GPTQ(both_ways=False)),
    "effort fast": "fast",
    "effort balanced": "balanced",
    "effort best": "best",
}
WEIGHTS = ("-", "scale_search", "awq", "gptq one way", "awq, gptq one way", "gptq")
STATIC = ("-", "smooth_quant", "smooth_quant, ranges", "smooth_quant, gptq")
FULL = ("-", "equalization", "smooth_quant", "gptq", "bias_correction", "effort best")


def weights(bits: int, group: int | None) -> Callable[[], Quantizer]:
    """Weights alone, in ``bits`` bits, with a scale per row or per ``group`` of a row."""
    config = get_weight_only_quantization_config(4, group)
    assert config.weight is not None
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    config = replace(config, weight=replace(config.weight, quant_min=low, quant_max=high))
    return lambda: WeightQuantizer(config)


# ------------------------------------------------------------------ networks


def decoder(bits: int, group: int | None) -> Work:
    net, text = load_checkpoint(DECODER, ByteDecoder), load_text()
    seen = windows(text.train, CONTEXT, 32, seed=1)
    fresh = windows(text.held_out, CONTEXT + 1, 48, seed=2)
    exact = logits(net, fresh)

    def score(model: Any) -> Scores:
        found = logits(model, fresh)
        kl = F.kl_div(found, exact, log_target=True, reduction="sum") / exact[..., 0].numel()
        loss = F.nll_loss(found.flatten(0, 1), fresh[:, 1:].flatten())
        return {"bits per byte": float(loss) / math.log(2), "KL": float(kl)}

    batches = [(part,) for part in seen.split(4)]
    program = torch.export.export(net, batches[0])
    return Work(program, weights(bits, group), batches, score, WEIGHTS)


def logits(net: Any, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([F.log_softmax(net(part[:, :-1]), -1) for part in tokens.split(4)])


def digits(path: Path, make: Callable[[], nn.Module], quantizer: Any, *methods: str) -> Work:
    net, data = load_checkpoint(path, make), load_digits()
    exact = guesses(net, data.held_out)

    def score(model: Any) -> Scores:
        found = guesses(model, data.held_out)
        right = float((found.argmax(1) == data.held_out_labels).float().mean())
        return {"accuracy %": 100 * right, "SQNR dB": float(sqnr(exact, found))}

    batches = [(part,) for part in data.train[:240].split(16)]
    program = torch.export.export(net, batches[0])
    return Work(program, quantizer, batches, score, methods)


def guesses(net: Any, images: Tensor) -> Tensor:
    """Logits, in batches of the size that was exported; the last one is filled up."""
    padded = torch.cat([images, images[: -len(images) % 16]])
    with torch.no_grad():
        return torch.cat([net(part) for part in padded.split(16)])[: len(images)]


def executorchs(*, is_per_channel: bool) -> Callable[[], Any]:
    """ExecuTorch's own quantizer."""
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as theirs

    config = theirs.get_symmetric_quantization_config(is_per_channel=is_per_channel)
    return lambda: theirs.XNNPACKQuantizer().set_global(config)


LONGEST = torch.export.Dim("tokens", min=2, max=minilm.LENGTH)
"""Sentences are as long as they are: what is filled up would be calibrated on, and judge."""


def sentences(
    quantizer: Callable[[], Quantizer], *methods: str, runtime: Runtime | None = None
) -> Work:
    """MiniLM.

    Args:
        quantizer, methods: see `Work`.
        runtime: makes what a runtime runs, of a converted model; its embeddings are scored, too.
    """
    net = minilm.load()
    encoded = [trimmed(batch) for batch in minilm.encode(minilm.sentences())]
    seen, fresh = encoded[: minilm.CALIBRATION], encoded[minilm.CALIBRATION :]
    exact, shapes = embeddings(net, fresh), {name: {1: LONGEST} for name in seen[0]}

    def score(model: Any) -> Scores:
        found = {"cosine": cosine(exact, embeddings(model, fresh))}
        if runtime is not None and isinstance(model, QuantGraphModule):
            with TemporaryDirectory() as folder:
                run = runtime(model, seen[0], shapes, Path(folder))
                vectors = embeddings(lambda **b: run(*b.values()), fresh)
            found["cosine in the runtime"] = cosine(exact, vectors)
        return found

    with torch.no_grad():
        program = torch.export.export(net, (), seen[0], dynamic_shapes=shapes)
    return Work(program, quantizer, seen, score, methods)


def trimmed(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A sentence without what fills it up."""
    length = int(batch["attention_mask"].sum())
    return {name: value[:, :length] for name, value in batch.items()}


def cosine(exact: Tensor, found: Tensor) -> float:
    return float(F.cosine_similarity(exact, found).mean())


def in_executorch(model: Any, example: dict[str, Tensor], shapes: Any, folder: Path) -> Any:
    return executorch.lower(model, kwargs=example, dynamic_shapes=shapes).load()


def in_onnxruntime(model: Any, example: dict[str, Tensor], shapes: Any, folder: Path) -> Any:
    path = folder / "model.onnx"
    onnx.export(model, (), path, kwargs=example, dynamic_shapes=shapes)
    return onnx.load(path, threads=1)


def embeddings(net: Any, batches: Iterable[dict[str, Tensor]]) -> Tensor:
    with torch.no_grad():
        return torch.cat(
            [minilm.embedding(measuring.first(net(**b)), b["attention_mask"]) for b in batches]
        )


WORKS: dict[str, Callable[[], Work]] = {
    **{
        f"decoder-{bits}-g{group}": lambda bits=bits, group=group: decoder(bits, group)
        for bits in (4, 3)
        for group in (32, 128)
    },
    "vit-channel": lambda: digits(
        VIT, DigitViT, executorchs(is_per_channel=True), *FULL, "adaround"
    ),
    "vit-tensor": lambda: digits(VIT, DigitViT, executorchs(is_per_channel=False), *FULL),
    "mobilenet_v3-channel": lambda: digits(
        MOBILENET_V3, DigitMobileNetV3, executorchs(is_per_channel=True), *FULL
    ),
    "mobilenet_v3-tensor": lambda: digits(
        MOBILENET_V3, DigitMobileNetV3, executorchs(is_per_channel=False), *FULL
    ),
    **{
        f"{name}-{bits}-row": lambda path=path, net=net, bits=bits: digits(
            path, net, weights(bits, None), "-", "gptq", "adaround, blocks"
        )
        for name, path, net, few in (
            ("digits", CHECKPOINT, DigitNet, (3, 2)),
            ("mobilenet_v3", MOBILENET_V3, DigitMobileNetV3, (4, 3)),
            ("vit", VIT, DigitViT, (3, 2)),
        )
        for bits in few
    },
    "minilm-4-row": lambda: sentences(weights(4, None), *WEIGHTS),
    "minilm-4-g32": lambda: sentences(weights(4, 32), *WEIGHTS),
    "minilm-4-g128": lambda: sentences(weights(4, 128), *WEIGHTS),
    **{
        f"minilm-8da4w-{name}": lambda group=group: sentences(
            lambda: XNNPACKQuantizer().set_global(get_dynamic_activation_4bit_weight_config(group)),
            *("-", "gptq one way", "gptq"),
            runtime=in_executorch,
        )
        for name, group in (("row", None), ("g32", 32), ("g128", 128))
    },
    "minilm-xnnpack": lambda: sentences(XNNPACKQuantizer, *STATIC, runtime=in_executorch),
    "minilm-xnnpack-residuals": lambda: sentences(
        lambda: XNNPACKQuantizer(residual_projections="static"), *STATIC, runtime=in_executorch
    ),
    "minilm-onnxruntime": lambda: sentences(
        OnnxQDQQuantizer.onnxruntime, *STATIC, runtime=in_onnxruntime
    ),
    "minilm-tensorrt": lambda: sentences(OnnxQDQQuantizer.tensorrt, *STATIC),
}


# ------------------------------------------------------------------ measuring


def peak(reset: bool = False) -> float:
    """The largest resident memory of this process since the last reset, in megabytes."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def measure(work: Work, method: str) -> dict[str, Any]:
    chosen = METHODS[method]
    prepared = prepare_pt2e(work.program, work.quantizer())
    with torch.no_grad():
        for batch in work.batches:
            prepared(**batch) if isinstance(batch, dict) else prepared(*batch)
    before, start = peak(reset=True), time.process_time()
    converted = convert(prepared, work, chosen)
    seconds, megabytes = time.process_time() - start, peak() - before
    rows = report_of(converted).rows
    return {
        **{name: round(value, 5) for name, value in work.score(converted).items()},
        "changes": f"{sum(row.kept for row in rows)} of {len(rows)}" if rows else "",
        "seconds": round(seconds, 1),
        "MB": round(megabytes),
    }


def convert(
    prepared: QuantGraphModule, work: Work, chosen: tuple[Any, ...] | str
) -> QuantGraphModule:
    if not chosen:
        return convert_pt2e(prepared)
    effort = chosen if isinstance(chosen, str) else None
    algorithms = () if isinstance(chosen, str) else chosen
    return improve_and_convert(prepared, work.batches, Improvement(algorithms, effort))


def run(names: list[str], methods: list[str] | None, out: Path) -> None:
    for name in names:
        work = WORKS[name]()
        for method in methods or work.methods:
            results = measuring.read_json(out)
            found = results.setdefault(name, {})
            found.setdefault("float", {k: round(v, 5) for k, v in score_of_float(work).items()})
            found[method] = measure(work, method)
            print(name, method, found[method], flush=True)
            measuring.write_json(out, results)


def score_of_float(work: Work) -> Scores:
    found = work.score(work.program.module())
    return {name: value for name, value in found.items() if math.isfinite(value)}


# ------------------------------------------------------------------ the tables of the page


def table(results: dict[str, Any], prefix: str) -> str:
    """The works whose names begin with a prefix, a row for each method."""
    works = [name for name in results if name.startswith(prefix)]
    known = {"changes", "seconds", "MB"}
    found = [results[work].get("-", {}) for work in works]
    scores = list(dict.fromkeys(name for one in found for name in one if name not in known))
    rows = [
        [name if first else "", f"`{method}`" if method not in ("-", "float") else method]
        + [_number(column, found.get(column)) for column in (*scores, "seconds", "MB")]
        for name in works
        for first, (method, found) in _marked(results[name])
    ]
    head = ["", "", *scores, "seconds", "MB"]
    return measuring.markdown_table(head, rows, figures=len(head) - 2)


def _marked(found: dict[str, Any]) -> list[tuple[bool, tuple[str, Any]]]:
    return [(index == 0, item) for index, item in enumerate(found.items())]


DIGITS = {
    "bits per byte": 3,
    "KL": 5,
    "cosine": 4,
    "cosine in the runtime": 4,
    "accuracy %": 2,
    "SQNR dB": 1,
    "MB": 0,
}


def _number(name: str, value: Any) -> str:
    return "" if value is None else f"{value:.{DIGITS.get(name, 1)}f}"


def markdown(results: dict[str, Any]) -> str:
    """All tables, under the names of their networks."""
    prefixes = dict.fromkeys(name.split("-")[0] for name in results)
    return "\n\n".join(f"### {prefix}\n\n{table(results, prefix)}" for prefix in prefixes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--works", nargs="*", choices=WORKS, default=list(WORKS))
    parser.add_argument("--methods", nargs="*", choices=METHODS)
    parser.add_argument("-o", "--out", type=Path, default=RESULT)
    parser.add_argument("--markdown", type=Path, help="print the tables of a result instead")
    options = parser.parse_args()
    if options.markdown is not None:
        print(markdown(measuring.read_json(options.markdown)))
        return
    measuring.set_up()
    run(options.works, options.methods, options.out)


if __name__ == "__main__":
    main()
