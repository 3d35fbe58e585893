"""Inductor on x86 processors as a backend."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.fx import GraphModule

from pt2q.deploy.backend import ActivationMode, Backend, Deployed, Example, Model
from pt2q.deploy.inductor.ahead_of_time import load_package, package
from pt2q.deploy.inductor.dry_run import fusion_report
from pt2q.deploy.inductor.fusion import FusionReport
from pt2q.deploy.signature import Batch
from pt2q.ir.torch_private import pytree
from pt2q.quantizers import (
    QuantizationConfig,
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
    get_x86_inductor_linear_dynamic_fp16_config,
)


def _config(mode: ActivationMode) -> QuantizationConfig:
    if mode == "weights":
        return get_x86_inductor_linear_dynamic_fp16_config()
    return get_default_x86_inductor_quantization_config(is_dynamic=mode == "dynamic")


def _deploy(model: Model, example: Example, path: Path) -> Deployed:
    args, kwargs = example.args, example.kwargs
    shapes = example.dynamic_shapes
    package(model, args, path, kwargs=kwargs, dynamic_shapes=shapes, check=False)
    loaded = load_package(path)

    def run(batch: Batch) -> Sequence[Any]:
        args, kwargs = example.signature.call(batch)
        return list(pytree.tree_leaves(loaded(*args, **kwargs)))

    size = path.stat().st_size
    if not isinstance(model, GraphModule):
        return Deployed(size, run)
    report = fusion_report(model, args, kwargs=kwargs)
    return Deployed(size, run, _rows(report), _warnings(report))


def _rows(report: FusionReport) -> tuple[tuple[str, str], ...]:
    computes = len(report.fused) + len(report.not_fused)
    return (("int8 kernels", f"{len(report.fused)} of {computes} convolutions and products"),)


def _warnings(report: FusionReport) -> tuple[str, ...]:
    return tuple(
        f"{row.node} is quantized but computes in float: {row.detail}" for row in report.not_fused
    )


X86 = Backend(
    name="x86",
    title="Inductor on x86 processors, a compiled .pt2 package",
    suffix=".pt2",
    runtime="Inductor",
    quantizer=X86InductorQuantizer,
    config=_config,
    deploy=_deploy,
    modes=("static", "dynamic", "weights"),
    scales=("channel",),
    holds_code=True,
)
