"""The row that pt2q finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from pt2q.deploy import Backend, Deployed, Example
from pt2q.deploy.signature import Batch
from pt2q.ir import ops
from pt2q.quantizers import QuantizationConfig
from pt2q_eager.program_file import load, save
from pt2q_eager.quantizer import EagerQuantizer, get_eager_quantization_config


def _config(mode: str) -> QuantizationConfig:
    return get_eager_quantization_config()


def _deploy(model: GraphModule | ExportedProgram, example: Example, path: Path) -> Deployed:
    program = model if isinstance(model, ExportedProgram) else _exported(model, example)
    save(program, path)
    loaded = load(path)

    def run(batch: Batch) -> list[Any]:
        args, kwargs = example.signature.call(batch)
        with torch.no_grad():
            return list(pytree.tree_leaves(loaded(*args, **kwargs)))

    roundings = sum(ops.is_op(node, ops.QUANTIZE) for node in program.graph.nodes)
    return Deployed(path.stat().st_size, run, (("rounds", f"{roundings} values"),))


def _exported(model: GraphModule, example: Example) -> ExportedProgram:
    shapes = example.dynamic_shapes
    with torch.no_grad():
        return torch.export.export(model, example.args, example.kwargs, dynamic_shapes=shapes)


EAGER = Backend(
    name="eager",
    title="PyTorch, operator by operator, an .eager file",
    suffix=".eager",
    quantizer=EagerQuantizer,
    config=_config,
    deploy=_deploy,
    modes=("static",),
    scales=("channel",),
)
