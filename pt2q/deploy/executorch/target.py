"""ExecuTorch with XNNPACK as a backend."""

from __future__ import annotations

from pathlib import Path

from torch.export import ExportedProgram

from pt2q.deploy.backend import ActivationMode, Backend, Deployed, Example, Model
from pt2q.deploy.executorch.delegation import Delegation
from pt2q.deploy.executorch.inner_values import InnerValues
from pt2q.deploy.executorch.loaded_method import LoadedMethod
from pt2q.deploy.executorch.lowering import lower
from pt2q.quantizers import (
    QuantizationConfig,
    XNNPACKQuantizer,
    get_embedding_operators_config,
    get_symmetric_quantization_config,
)


def _config(mode: ActivationMode) -> QuantizationConfig:
    return get_symmetric_quantization_config(is_per_channel=True, is_dynamic=mode == "dynamic")


def _deploy(model: Model, example: Example, path: Path) -> Deployed:
    if isinstance(model, ExportedProgram):
        program = lower(model, check=False)
    else:
        kwargs, shapes = example.kwargs, example.dynamic_shapes
        program = lower(model, example.args, kwargs=kwargs, dynamic_shapes=shapes, check=False)
    loaded = program.load()
    program.save(path)
    left = program.delegation.quantized_left
    return Deployed(
        len(program.buffer),
        lambda batch: loaded(*example.signature.leaves(batch)),
        (*_rows(program.delegation), *_sizes(loaded.method(), example)),
        tuple(f"{name} is quantized but XNNPACK does not run it" for name in left),
    )


def _inner_values(model: Model, example: Example) -> InnerValues:
    shapes = example.dynamic_shapes
    return InnerValues(model, example.args, kwargs=example.kwargs, dynamic_shapes=shapes)


def _rows(found: Delegation) -> tuple[tuple[str, str], ...]:
    portable = "\n".join(f"{count} x {name}" for name, count in found.portable) or "none"
    share = f"{found.delegated} of {found.delegated + found.left} operators"
    return ("runs on XNNPACK", share), ("portable", portable)


def _sizes(method: LoadedMethod, example: Example) -> tuple[tuple[str, str], ...]:
    """The largest sizes that the program takes, where they vary."""
    if example.dynamic_shapes is None:
        return ()
    bounds = method.bounds
    for position, _ in reversed(example.signature.constants):
        bounds = bounds[:position] + bounds[position + 1 :]
    inputs = zip(example.signature.inputs, bounds, strict=True)
    lines = [f"{x.name} {tuple(sizes)}" for x, sizes in inputs if None in x.shape]
    return (("sizes up to", "\n".join(lines)),)


XNNPACK = Backend(
    name="xnnpack",
    title="ExecuTorch with XNNPACK, a .pte program",
    suffix=".pte",
    runtime="ExecuTorch",
    quantizer=XNNPACKQuantizer,
    config=_config,
    deploy=_deploy,
    bounds_sizes=True,
    inner_values=_inner_values,
    groups_of=32,
    embeddings=lambda: get_embedding_operators_config().config,
)
