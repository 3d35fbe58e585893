"""The int8 programs of both stacks, lowered for XNNPACK and kept in ``build/xnnpack_peer``.

A program is made anew when what it is made of has changed: of this stack its sources, of the other
its releases, of both the networks. Making them needs no quiet machine, timing them does.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import measuring
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from large_convnets import LARGE
from measuring import first
from stacks import Ours, Peer
from support.nets import NETS, Net
from torch import Tensor, nn
from torch.export import ExportedProgram
from zoo import Subject, subject

from pt2q import sqnr
from pt2q.deploy import executorch
from pt2q.deploy.executorch.delegation import delegation_of
from pt2q.deploy.executorch.file_account import describe
from pt2q.library_output import first_line

FOLDER = measuring.ROOT / "build" / "xnnpack_peer"
CALIBRATION, HELD_OUT = 4, 6
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


def converted(stack: Ours | Peer, work: Subject, exported: ExportedProgram) -> Any:
    """The int8 model that a stack makes of a float one."""
    prepared = stack.prepare(exported.module())
    for batch in work.calibration:
        prepared(*batch)
    return stack.convert(prepared)


def ours(work: Subject, exported: ExportedProgram) -> executorch.Program:
    """The program of this stack."""
    model = converted(Ours(), work, exported)
    return executorch.lower(model, work.calibration[0], check=False)


def theirs(work: Subject, exported: ExportedProgram) -> executorch.Program:
    """The program of the other stack, lowered as its users do."""
    model = converted(Peer(), work, exported)
    again = torch.export.export(model, work.calibration[0])
    edge = to_edge_transform_and_lower(again, partitioner=[XnnpackPartitioner()])
    found = delegation_of(edge.exported_program().graph_module)
    return executorch.Program(bytes(edge.to_executorch().buffer), found)


STACKS = {"pt2q": ours, "peer": theirs}


def made(name: str) -> dict[str, dict[str, Any]]:
    """What is known of both programs of a network, which lie in `FOLDER` then.

    Args:
        name: one of `MODELS`.

    Returns:
        By stack, counts of its program, or ``fails`` with what it says, and ``made_of``.
    """
    stale = [stack for stack in STACKS if _known(name, stack).get("made_of") != made_of(stack)]
    if stale:
        with torch.no_grad():
            _make(name, stale)
    return {stack: _known(name, stack) for stack in STACKS}


def path_of(name: str, kind: str) -> Path:
    """Where a program lies, what is known of it, or the inputs of a network."""
    return FOLDER / f"{name}.{kind}"


@cache
def made_of(stack: str) -> str:
    """A digest of what the programs of a stack are made of."""
    root = measuring.ROOT
    paths = [root / "benchmarks" / name for name in ("zoo.py", "stacks.py", "peer_programs.py")]
    if stack == "pt2q":
        rooms = ("pt2q", "passes", "quantizers")
        paths += sorted(path for room in rooms for path in (root / room).rglob("*.py"))
    digest = hashlib.sha256(repr(measuring.versions("torch", "executorch", "torchao")).encode())
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _known(name: str, stack: str) -> dict[str, Any]:
    return measuring.read_json(path_of(name, f"{stack}.json"))


def _make(name: str, stacks: list[str]) -> None:
    work = subject_of(name)
    FOLDER.mkdir(parents=True, exist_ok=True)
    torch.save(work.held_out[0], path_of(name, "inputs"))
    floats = torch.cat([first(work.model(*args)).flatten() for args in work.held_out])
    exported = torch.export.export(work.model, work.calibration[0])
    for stack in stacks:
        try:
            program = STACKS[stack](work, exported)
        except Exception as error:
            found: dict[str, Any] = {"fails": f"{type(error).__name__}: {first_line(error)}"}
        else:
            path = program.save(path_of(name, f"{stack}.pte"))
            found = {
                **counts(program.delegation),
                **inside(path),
                "db": float(sqnr(floats, outputs(program, work))),
                "bytes": len(program.buffer),
            }
        text = json.dumps(found | {"made_of": made_of(stack)})
        path_of(name, f"{stack}.json").write_text(text)


def outputs(program: executorch.Program, work: Subject) -> Tensor:
    """What a program gives on the batches held out."""
    loaded = program.load()
    return torch.cat([loaded(*args)[0].flatten() for args in work.held_out])


def counts(found: executorch.Delegation) -> dict[str, Any]:
    """Who runs what."""
    rounding = [n for op, n in found.portable if any(word in op for word in QUANTIZATION)]
    return {
        "blobs": found.blobs,
        "delegated": found.delegated,
        "left": found.left,
        "rounding_left": sum(rounding),
        "quantized_left": len(found.quantized_left),
        "portable": [list(pair) for pair in found.portable],
    }


def inside(path: Path) -> dict[str, int]:
    """How many operators XNNPACK runs, and how many of them convert numbers."""
    found = dict(describe(path).methods[0].delegated)
    return {"nodes": sum(found.values()), "converts": found.get("Convert", 0)}
