"""ExecuTorch with XNNPACK as a backend."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch.export import ExportedProgram

from pt2q.deploy.backend import (
    ActivationMode,
    Backend,
    Deployed,
    DeployedTogether,
    Example,
    Model,
    Run,
)
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


def _deploy_together(
    models: Mapping[str, Model], examples: Mapping[str, Example], path: Path
) -> DeployedTogether:
    program = lower(
        models,
        {name: example.args for name, example in examples.items()},
        kwargs={name: example.kwargs for name, example in examples.items()},
        dynamic_shapes={name: example.dynamic_shapes for name, example in examples.items()},
        check=False,
    )
    loaded = program.load()
    program.save(path)
    methods = {name: loaded.method(name) for name in models}
    sizes = (row for name, method in methods.items() for row in _sizes(method, examples[name]))
    left = program.delegation.quantized_left
    return DeployedTogether(
        len(program.buffer),
        {name: _run(method, examples[name]) for name, method in methods.items()},
        (*_rows(program.delegation), *sizes),
        tuple(f"{name} is quantized but XNNPACK does not run it" for name in left),
    )


def _run(method: LoadedMethod, example: Example) -> Run:
    return lambda batch: method(*example.signature.leaves(batch))


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
    deploy_together=_deploy_together,
    groups_of=32,
    loads=(
        "torch.export.pt2_archive",
        "executorch.exir",
        "executorch.backends.xnnpack.partition.xnnpack_partitioner",
    ),
    embeddings=lambda: get_embedding_operators_config().config,
)
