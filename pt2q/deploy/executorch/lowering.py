"""From a converted model to the bytes of a `.pte`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from pt2q.deploy.executorch.delegation import Delegation, delegation_of
from pt2q.deploy.executorch.embeddings import fuse_lookups, quantized_lookups
from pt2q.deploy.executorch.partitions import xnnpack_partitioner
from pt2q.deploy.executorch.refusals import (
    refuse_measured_constants,
    refuse_uint8,
    refuse_weight_only,
    why_not_bodies,
)
from pt2q.deploy.executorch.runtime import PROVENANCE, LoadedProgram, load
from pt2q.deploy.export import export_rewritten, in_float32, refuse_prepared
from pt2q.deploy.provenance import provenance_text
from pt2q.deploy.signature import dynamic_shapes as dynamic_shapes_of
from pt2q.deploy.signature import signature_of, unbounded_sizes
from pt2q.errors import LoweringError, UnboundedSizeWarning
from pt2q.files import write_bytes
from pt2q.ir.module import QuantGraphModule, copy_module
from pt2q.ir.qparams import quantized_nodes
from pt2q.library_output import first_line, quiet_python
from pt2q.optional import optional_modules
from pt2q.passes import OwnBiases, run_passes
from pt2q.passes.transform.float32 import half_types


@dataclass(frozen=True)
class Program:
    """A lowered program: the bytes of a `.pte` and who runs what in it."""

    buffer: bytes = field(repr=False)
    delegation: Delegation

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the `.pte`; an interrupted save leaves no half-written file behind.

        Args:
            path: the file to write; its folder is made when missing.

        Returns:
            The path written.

        Raises:
            SaveError: the file cannot be written there.
        """
        return write_bytes(path, self.buffer)

    def load(self) -> LoadedProgram:
        """Load the program into the ExecuTorch runtime."""
        return load(self.buffer)


def lower(
    converted: nn.Module | ExportedProgram,
    args: tuple[Any, ...] = (),
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
) -> Program:
    """Lower a converted (or plain float) model to an ExecuTorch program that runs on XNNPACK.

    Args:
        converted: what `convert_pt2e` gave, any module that `torch.export` takes, or a program
            that is exported already (then the other arguments are not used).
        args: example inputs.
        kwargs: example keyword inputs.
        dynamic_shapes: as for `torch.export.export`. Memory is planned for the largest sizes: a
            dimension without an upper bound is bounded by the example, and an
            `UnboundedSizeWarning` says so. A model with convolutions that is exported
            with an example batch below 16 runs up to batch 15 only; give 16 or more.

    Returns:
        The program with its delegation.

    Raises:
        FlowError: the model is prepared, not converted.
        LoweringError: the model cannot be lowered; the message says why.
        MissingDependencyError: executorch is not installed.
    """
    return packed(converted, args, kwargs=kwargs, dynamic_shapes=dynamic_shapes)[0]


def packed(
    converted: nn.Module | ExportedProgram,
    args: tuple[Any, ...] = (),
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
) -> tuple[Program, Any]:
    """What `lower` gives, with ExecuTorch's own account of it, an ``ExecutorchProgramManager``."""
    refuse_prepared(converted)
    (exir,) = optional_modules("executorch.exir", extra="executorch")
    origin, program = provenance_text(converted, "executorch"), converted
    if isinstance(program, ExportedProgram) and _needs_rewriting(program):
        args, kwargs = program.example_inputs or (args, kwargs)
        dynamic_shapes = dynamic_shapes_of(program, signature_of(program))
        program = copy_module(program.module(check_guards=False))
    if not isinstance(program, ExportedProgram):
        program = export_rewritten(program, _for_xnnpack, args, kwargs, dynamic_shapes)
    refuse_uint8(program.graph)
    refuse_weight_only(program.graph)
    refuse_measured_constants(program)
    _warn_of_unbounded_sizes(program)
    try:
        # With gradients, ExecuTorch fails on buffers that are written into.
        with quiet_python(), torch.no_grad():
            return _packed(program, exir, xnnpack_partitioner(), origin)
    except Exception as error:
        raise LoweringError(
            f"ExecuTorch could not lower the model: {first_line(error).rstrip('.')}"
            f"{why_not_bodies(program)}"
        ) from error


def _warn_of_unbounded_sizes(program: ExportedProgram) -> None:
    """ExecuTorch plans memory for the largest inputs, and takes the example's if nothing says."""
    for name, dims in unbounded_sizes(program).items():
        if dims:
            numbers = ", ".join(map(str, dims))
            warnings.warn(
                f"input {name} has no upper bound for dimension(s) {numbers}: the program takes "
                "sizes up to those of the example. Export with a bound, such as "
                'torch.export.Dim("batch", max=64)',
                UnboundedSizeWarning,
                stacklevel=4,
            )


def _packed(
    program: ExportedProgram, exir: Any, partitioner: Any, origin: str | None
) -> tuple[Program, Any]:
    constants = None if origin is None else {PROVENANCE: origin}
    edge = exir.to_edge_transform_and_lower(
        program, partitioner=[partitioner], constant_methods=constants
    )
    # Before packing, which rewrites the graph into allocations and out variants.
    delegation = delegation_of(edge.exported_program().graph_module)
    manager = edge.to_executorch(_with_initial_values(exir, edge))
    return Program(bytes(manager.buffer), delegation), manager


def _with_initial_values(exir: Any, edge: Any) -> Any:
    """Have the program carry the values that written buffers start from.

    ExecuTorch allocates such buffers and leaves them at that. Zeros, which a cache starts from,
    need not be carried: the runtime's memory is zero.
    """
    (initial,) = optional_modules("executorch.exir.passes.init_mutable_pass", extra="executorch")
    program = edge.exported_program()
    signature = program.graph_signature
    written = set(signature.buffers_to_mutate.values())
    names = [
        name
        for name, buffer in signature.inputs_to_buffers.items()
        if buffer in written and bool(_initial_value(program, buffer).any())
    ]
    passes = [initial.InitializedMutableBufferPass(names)] if names else []
    return exir.ExecutorchBackendConfig(passes=passes)


def _initial_value(program: Any, buffer: str) -> torch.Tensor:
    found = program.state_dict.get(buffer)
    value: torch.Tensor = program.constants[buffer] if found is None else found
    return value


def _needs_rewriting(program: ExportedProgram) -> bool:
    """Whether an exported program is not in the form that XNNPACK and the runtime take."""
    if not quantized_nodes(program.graph_module):
        return False
    module = program.module(check_guards=False)
    return bool(half_types(module) or quantized_lookups(module))


def _for_xnnpack(model: nn.Module) -> nn.Module:
    """Trained models come with biases still tied; quantized kernels compute in float32."""
    if not isinstance(model, QuantGraphModule):
        return model
    copied = run_passes(copy_module(model), [OwnBiases()])
    in_float32(copied, "XNNPACK")
    fuse_lookups(copied)
    return copied
