"""The int8 programs of both stacks beside each other in the ExecuTorch runtime, net by net.

    python benchmarks/xnnpack_peer.py                     all networks; about half an hour
    python benchmarks/xnnpack_peer.py --models minilm vit_s16

Both stacks quantize the same exported program with their own XNNPACK quantizer in the same
setting, static int8 with a scale per output channel, from the same batches, and both are lowered.
Counted are delegated blobs, operators that portable kernels run, and quantizes and dequantizes
among them. Then both files run in turn in one process; of each the median and the least time is
kept. Quality is the SQNR of what the runtime gives against the float model on batches held out.
Raw figures go to ``benchmarks/results/xnnpack_peer.json``, the table to ``docs/xnnpack_peer.md``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measuring
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from large_convnets import LARGE
from measuring import first, markdown_table
from stacks import Ours, Peer
from support.nets import NETS, Net
from torch import Tensor, nn
from zoo import Subject, subject

from pt2q import sqnr
from pt2q.deploy import executorch
from pt2q.deploy.executorch.delegation import delegation_of
from pt2q.deploy.executorch.file_account import describe

RESULT = measuring.RESULTS / "xnnpack_peer.json"
PAGE = measuring.ROOT / "docs" / "xnnpack_peer.md"
CALIBRATION, HELD_OUT = 4, 6
RUNS = 60
QUANTIZATION = ("quantize", "dequantize", "choose_qparams")


class ConvLSTM(nn.Module):
    """Convolutions over time, a recurrent layer, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv1d(16, 32, 5, padding=2), nn.ReLU(), nn.Conv1d(32, 32, 5, padding=2), nn.ReLU()
        )
        self.recurrent = nn.LSTM(32, 32, batch_first=True)
        self.classifier = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        found, _ = self.recurrent(self.convolutions(x).transpose(1, 2))
        return self.classifier(found[:, -1])


CONV_LSTM = Net(ConvLSTM, lambda batch, seed: (torch.randn(batch, 16, 12),))
WHOLE = {
    **{name: NETS[name] for name in ("mobilenet_v2", "resnet18", "resnet50", "vit_s16")},
    **LARGE,
    "conv_lstm": CONV_LSTM,
}
SMALL = (
    *("minilm", "digits", "digits_vit", "digits_mobilenet_v3", "byte_decoder", "bert", "llama"),
    *("gpt2", "distilbert", "gpt_neox", "qwen3", "gemma", "phi", "t5", "bart", "wav2vec2", "vit"),
    *("swin", "convnext", "efficientnet", "mobilevit", "segformer", "resnet", "mobilenet_v1"),
)
MODELS = (*WHOLE, *SMALL)


def subject_of(name: str) -> Subject:
    """A float model and its batches."""
    net = WHOLE.get(name)
    if net is None:
        return subject(name)
    torch.manual_seed(0)
    batches = [net.inputs(1, seed) for seed in range(CALIBRATION + HELD_OUT)]
    return Subject(net.build(0), batches[:CALIBRATION], batches[CALIBRATION:])


def converted(stack: Ours | Peer, work: Subject) -> Any:
    """The int8 model that a stack makes of a float one."""
    prepared = stack.prepare(torch.export.export(work.model, work.calibration[0]).module())
    for batch in work.calibration:
        prepared(*batch)
    return stack.convert(prepared)


def ours(work: Subject) -> executorch.Program:
    """The program of this stack."""
    return executorch.lower(converted(Ours(), work), work.calibration[0], check=False)


def theirs(work: Subject) -> executorch.Program:
    """The program of the other stack, lowered as its users do."""
    exported = torch.export.export(converted(Peer(), work), work.calibration[0])
    edge = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    found = delegation_of(edge.exported_program().graph_module)
    return executorch.Program(bytes(edge.to_executorch().buffer), found)


STACKS = {"pt2q": ours, "peer": theirs}


def times(loaded: Sequence[Any], args: tuple[Tensor, ...]) -> list[list[float]]:
    """Milliseconds of runs of several programs, in turn."""
    found: list[list[float]] = [[] for _ in loaded]
    for turn in range(-3, RUNS):
        for place in range(len(loaded)):
            which = (place + turn) % len(loaded)
            start = time.perf_counter()
            loaded[which](*args)
            if turn >= 0:
                found[which].append(1e3 * (time.perf_counter() - start))
    return found


@torch.no_grad()
def compare(name: str) -> dict[str, Any]:
    """The figures of both stacks for a network; of one that fails, what it says."""
    work = subject_of(name)
    floats = torch.cat([first(work.model(*args)).flatten() for args in work.held_out])
    programs: dict[str, Any] = {}
    found: dict[str, Any] = {}
    for stack, make in STACKS.items():
        try:
            programs[stack] = make(work)
        except Exception as error:
            found[stack] = {"fails": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    loaded = {stack: program.load() for stack, program in programs.items()}
    measured = dict(zip(loaded, times(list(loaded.values()), work.held_out[0]), strict=True))
    for stack, program in programs.items():
        found[stack] = {
            **counts(program.delegation),
            **inside(program),
            "db": float(sqnr(floats, outputs(loaded[stack], work))),
            "bytes": len(program.buffer),
            "median_ms": statistics.median(measured[stack]),
            "least_ms": min(measured[stack]),
        }
    return found


def outputs(loaded: Any, work: Subject) -> Tensor:
    return torch.cat([loaded(*args)[0].flatten() for args in work.held_out])


def counts(found: executorch.Delegation) -> dict[str, Any]:
    rounding = [n for op, n in found.portable if any(word in op for word in QUANTIZATION)]
    return {
        "blobs": found.blobs,
        "delegated": found.delegated,
        "left": found.left,
        "rounding_left": sum(rounding),
        "quantized_left": len(found.quantized_left),
        "portable": [list(pair) for pair in found.portable],
    }


def inside(program: executorch.Program) -> dict[str, int]:
    """How many operators XNNPACK runs, and how many of them convert numbers."""
    with tempfile.TemporaryDirectory() as folder:
        method = describe(program.save(Path(folder) / "model.pte")).methods[0]
    found = dict(method.delegated)
    return {"nodes": sum(found.values()), "converts": found.get("Convert", 0)}


INTRODUCTION = """# XNNPACK beside the other stack

Made by `python benchmarks/xnnpack_peer.py`: the same exported programs, quantized by each stack
with its own XNNPACK quantizer in the same setting (static int8, a scale per output channel) from
the same batches, and lowered. The other stack is ExecuTorch's `XNNPACKQuantizer` with `torchao`'s
flow. *Blobs* are the pieces that XNNPACK runs, *left* the operators that portable kernels run,
*nodes* what XNNPACK runs, in brackets those that quantize or dequantize. Both programs run in turn
in one process of one thread; times are the least of {runs} runs, in milliseconds, and the ratio is
ours by theirs. SQNR in dB is that of what the runtime gives against the float model, on held-out
batches; weights are random where nothing is shipped.

"""


def page(results: dict[str, Any]) -> str:
    pairs = ("blobs", "nodes", "left", "dB", "ms")
    head = ["network", *(cell for name in pairs for cell in (name, "theirs")), "ratio"]
    rows = [_cells(name, found) for name, found in results.items()]
    ratios = [_ratio(found) for found in results.values() if not _fails(found)]
    last = (
        f"\nOf {len(ratios)} networks that both stacks lower, ours is at most as slow on "
        f"{sum(ratio <= 1 for ratio in ratios)} and within 5 % on "
        f"{sum(ratio <= 1.05 for ratio in ratios)}; the median of the ratios is "
        f"{statistics.median(ratios):.2f}, the largest {max(ratios):.2f}. The other stack fails on "
        f"{len(results) - len(ratios)}.\n"
    )
    return INTRODUCTION.format(runs=RUNS) + markdown_table(head, rows) + "\n" + last


def _fails(found: dict[str, Any]) -> bool:
    return any("fails" in one for one in found.values())


def _ratio(found: dict[str, Any]) -> float:
    return float(found["pt2q"]["least_ms"] / found["peer"]["least_ms"])


def _cells(name: str, found: dict[str, Any]) -> list[str]:
    ours, theirs = _column(found["pt2q"]), _column(found["peer"])
    cells = [cell for pair in zip(ours, theirs, strict=True) for cell in pair]
    return [name, *cells, "" if _fails(found) else f"{_ratio(found):.2f}"]


def _column(one: dict[str, Any]) -> list[str]:
    if "fails" in one:
        return ["fails", "", "", "", ""]
    nodes = f"{one['nodes']} ({one['converts']})"
    left = f"{one['left']} ({one['rounding_left']})"
    return [str(one["blobs"]), nodes, left, f"{one['db']:.1f}", f"{one['least_ms']:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    options = parser.parse_args()
    measuring.set_up()
    # Of the networks that are not asked for, what was measured last stays.
    found = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for name in options.models:
        found[name] = compare(name)
        print(name, json.dumps(found[name]), flush=True)
        results = {name: found[name] for name in MODELS if name in found}
        measuring.write_json(RESULT, results)
        PAGE.write_text(page(results))


if __name__ == "__main__":
    main()
