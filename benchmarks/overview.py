"""The page of benchmarks: `python benchmarks/overview.py` writes docs/benchmarks.md.

It reads what the other programs here wrote to benchmarks/results/ and measures nothing itself.
`python benchmarks/pictures.py` draws the pictures of the page.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean
from typing import Any

import measuring
from measuring import markdown_table, median

PAGE = measuring.ROOT / "docs" / "benchmarks.md"
SIDES = ("pt2q", "peer")

HEAD = """# Benchmarks

<!-- Written by benchmarks/overview.py from benchmarks/results/: run a benchmark, then this. -->

Every figure is measured by a program in `benchmarks/`, which runs pt2q and, where there is one, the
peer in the same process, in turn, on the same exported model and inputs. The *peer* is
`torchao.quantization.pt2e` with the quantizers that ExecuTorch ships. Raw samples are in
`benchmarks/results/`. Compare ratios: seconds depend on the machine, here two x86-64 cores.

"""

PROGRAMS = (
    ("pipeline", "time and memory of prepare, calibrate, convert", "#prepare-and-convert"),
    ("command", "a saved model to a `.pte` by the command line", "#the-whole-command"),
    ("observers", "the histogram observer: quality, search, cost", "#the-histogram-observer"),
    ("qat", "prepare and convert for training, a training step", "#training"),
    ("xnnpack", "accuracy, size and latency in the ExecuTorch runtime", "xnnpack.md"),
    ("xnnpack_peer", "the int8 programs of both stacks in the runtime", "xnnpack_peer.md"),
    ("roads", "the same in every runtime", "roads.md"),
    ("accuracy", "what post-training algorithms win back", "accuracy.md#what-they-win"),
    ("distributed", "calibration on two processes against one", "large.md"),
    ("checkpoint_decoder", "a Llama in bfloat16, as checkpoints ship", "large.md#language-models"),
    ("large_models", "a decoder of a billion parameters, 20,000 nodes", "large.md#language-models"),
    ("scoreboard", "architectures of `transformers`, quantizer by quantizer", "scoreboard.md"),
    ("decoder", "a language model with a cache", "graphs.md#a-language-model-that-remembers"),
    (
        "other_quantizers",
        "quantizers of ExecuTorch in both stacks",
        "other_quantizers.md#all-of-them-beside-their-own-stack",
    ),
)

PIPELINE = """
## Prepare and convert

![seconds of prepare and convert, network by network](benchmarks_flow.svg)

CPU seconds of one thread for `prepare_pt2e` and `convert_pt2e` together, given the exported module,
static int8 for XNNPACK, each stack in a fresh process. A calibration step is a forward pass of the
prepared model, as a multiple of the float model's, with one sample at a time and with eight. The
`mlp` models are chains of so many residual layers of 32 features: they show how time grows. *Of
least* says how many times as long it takes as what cannot be done without: torch's plain copies of
both graphs, the observers made and asked for their parameters, and the code of both results.

"""

GROWTH = """
Seconds grow with the number of layers to the power of {:.2f}, the peer's to the power of {:.2f}.
"""
COMMAND = """
## The whole command

`pt2q quantize` of MobileNetV2 with 32 images of 224 pixels to a `.pte`, beside a script that does
the same with the peer, each a fresh process of one thread, in turn. `pt2q quantize` also compares
the written file with the float model on held-out images in the runtime.

| | pt2q | peer |
| --- | ---: | ---: |
| CPU seconds | {ours[seconds]:.1f} | {peer[seconds]:.1f} |
| peak of memory, MB | {ours[mb]:.0f} | {peer[mb]:.0f} |

That is {ratio:.2f} of the peer's time. Of one run of pt2q {lowering:.1f} s are ExecuTorch's own
lowering, {imports:.1f} s imports of torch and ExecuTorch, {rest:.1f} s all else.
"""
MEMORY = """
How far each step's peak of memory exceeds what was in use before it, and what the converted model
keeps, in MB:

"""
OBSERVERS = """
## The histogram observer

{cases} cases: {kinds} kinds of data, up to {samples:,} samples, in {types} types. The signal to
quantization noise ratio that its scale and zero point give on the data observed, beside the peer's
histogram observer and the best pair that a dense search finds:

| | dB |
|---|---|
| over the peer, mean | {lead:+.2f} |
| over the peer, least | {least:+.2f} |
| below the optimum, mean | {short:.2f} |
| below the optimum, most | {most:.2f} |

The search takes {search} ms per observer where many are searched together, as `convert_pt2e` does.
A forward pass with an observer at every quantized value, as a multiple of the float model's:

"""
TRAINING = """
## Training

![a step of calibration and of training, as a multiple of the float model's](benchmarks_steps.svg)

CPU seconds of one thread for `prepare_qat_pt2e` and `convert_pt2e` together. A step is forward,
backward and SGD at batch 8 and 96 pixels, as a multiple of the float step; memory is what autograd
keeps for the backward pass.

"""


def read(name: str) -> Any:
    """What a benchmark wrote."""
    return measuring.read_json(measuring.RESULTS / f"{name}.json")


def table(head: list[str], rows: Iterator[list[str]]) -> str:
    """A table in Markdown; all but its first column are figures."""
    return markdown_table(head, list(rows), figures=len(head) - 1) + "\n"


def linked(program: str, subject: str, place: str) -> list[str]:
    """Row: a benchmark, and what it measures with a link to its results."""
    return [f"`{program}.py`", f"[{subject}]({place})"]


def seconds(flow: dict[str, Any]) -> float:
    """Prepare and convert together: the sum of their medians."""
    return median(flow["prepare"]) + median(flow["convert"])


def pipeline(results: dict[str, Any]) -> Iterator[list[str]]:
    """Rows: seconds of both sides, their ratio, and calibration."""
    for model, result in results.items():
        passes = result["passes"]
        ours, peer = (seconds(passes[side]) for side in SIDES)
        ratios = [
            f"{median(steps[s]) / median(steps['float']):.2f}x" if steps else ""
            for steps in (passes.get("calibrate"), passes.get("calibrate_8"))
            for s in SIDES
        ]
        beside = [f"{peer:.2f}", f"{peer / ours:.0f}x"] if peer == peer else ["", ""]
        over = f"{ours / median(passes['pt2q']['least']):.1f}x"
        yield [model, f"{ours:.2f}", *beside, over, *ratios]


def growth(results: dict[str, Any], side: str) -> float:
    """The power of the number of layers with which the seconds of one side grow."""
    flows = {int(k[4:]): v["passes"][side] for k, v in results.items() if k.startswith("mlp_")}
    return measuring.exponent({n: seconds(flow) for n, flow in flows.items() if flow["prepare"]})


def memory(results: dict[str, Any]) -> Iterator[list[str]]:
    """Rows: megabytes of both sides, step by step."""
    for model, result in results.items():
        sizes = result.get("memory")
        if sizes:
            keys = ("prepare", "calibrate", "convert", "state_dict")
            yield [
                model,
                *(f"{sizes['pt2q'][k]:.0f}, peer {sizes['peer'][k]:.0f}" for k in keys),
            ]


def command(results: dict[str, Any]) -> str:
    """The section about `pt2q quantize`, of its samples and of the parts of one run."""
    ours, peer = (
        {key: median([run[key] for run in results["samples"][side]]) for key in ("seconds", "mb")}
        for side in SIDES
    )
    parts = results["parts"]
    return COMMAND.format(
        ours=ours,
        peer=peer,
        ratio=ours["seconds"] / peer["seconds"],
        lowering=parts["lowering"],
        imports=parts["import"],
        rest=parts["rest"],
    )


def observers(results: dict[str, Any]) -> str:
    """The section about the histogram observer."""
    rows = results["quality"]
    lead = [row["ours"] - row["peer"] for row in rows]
    short = [row["best"] - row["ours"] for row in rows]
    times = results["search"].values()
    head = OBSERVERS.format(
        cases=len(rows),
        samples=max(row["size"] * row["batches"] for row in rows),
        kinds=len({row["data"] for row in rows}),
        types=len({row["type"] for row in rows}),
        lead=fmean(lead),
        least=min(lead),
        short=fmean(short),
        most=max(short),
        search=f"{min(times):.1f} to {max(times):.1f}",
    )
    cells = (
        [r["model"], str(r["observers"]), f"{r['ours_ratio']:.2f}x", f"{r['peer_ratio']:.2f}x"]
        for r in results["cost"]
    )
    return head + table(["model", "observers", "pt2q", "peer"], cells)


def training(results: dict[str, Any]) -> Iterator[list[str]]:
    """Rows: preparing and converting, then steps and memory of the three forms."""
    for model, result in results.items():
        if "flow" not in result:
            continue
        ours, peer = (seconds(result["flow"][side]) for side in SIDES)
        step, kept = result["step"], result["step"]["megabytes"]
        forms = ("pt2q", "pt2q plain", "peer")
        ratios = (
            f"{median(step[f]) / median(step['float']):.2f}x, {kept[f]:.0f} MB" for f in forms
        )
        yield [model, f"{ours:.2f} s, peer {peer:.1f} s: {peer / ours:.0f}x", *ratios]


def versions(results: dict[str, Any]) -> str:
    """What the first of the benchmarks was measured with."""
    return ", ".join(f"{name} {version}" for name, version in results["versions"].items())


def parts() -> Iterator[str]:
    """The page in pieces."""
    flow = read("pipeline")
    yield HEAD
    yield markdown_table(["program", "what it measures"], [linked(*p) for p in PROGRAMS]) + "\n"
    yield PIPELINE
    head = ["model", "pt2q, s", "peer, s", "ratio", "of least"]
    head += ["calibration", "peer's", "batch of 8", "peer's"]
    yield table(head, pipeline(flow["results"]))
    yield GROWTH.format(*(growth(flow["results"], side) for side in SIDES))
    yield MEMORY
    yield table(["model", "prepare", "calibrate", "convert", "kept"], memory(flow["results"]))
    yield f"\nMeasured with {versions(flow)}.\n"
    yield command(read("command"))
    yield observers(read("observers"))
    yield TRAINING
    qat = {name: found for name, found in read("qat").items() if isinstance(found, dict)}
    head = ["model", "prepare and convert", "a step", "a step, `fast=False`", "the peer's step"]
    yield table(head, training(qat))


def page() -> str:
    """The whole page, as Markdown."""
    return "".join(parts())


if __name__ == "__main__":
    PAGE.write_text(page())
