"""From a converted model to the bytes of a `.pte`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from pt2q.deploy.agreement import Call, check_agreement
from pt2q.deploy.executorch.attention import attention_in_parts, attentions
from pt2q.deploy.executorch.decomposing import taken_apart_where_needed
from pt2q.deploy.executorch.delegable_forms import delegable, delegable_forms
from pt2q.deploy.executorch.delegation import Delegation, delegation_of, delegation_of_all
from pt2q.deploy.executorch.embeddings import fuse_lookups, quantized_lookups
from pt2q.deploy.executorch.idle_copies import without_idle_expansions
from pt2q.deploy.executorch.known_parts import store_known_parts
from pt2q.deploy.executorch.node_sources import shared_node_sources
from pt2q.deploy.executorch.pads import round_pads
from pt2q.deploy.executorch.partitions import xnnpack_partitioner
from pt2q.deploy.executorch.patterns import sought_where_possible
from pt2q.deploy.executorch.picks import picks_as_lookups, quantized_picks
from pt2q.deploy.executorch.refusals import (
    refuse_measured_constants,
    refuse_other_types,
    refuse_weight_only,
    why_not_bodies,
    why_not_grouped_scales,
)
from pt2q.deploy.executorch.retracing import gone_through_where_changed
from pt2q.deploy.executorch.runtime import PROVENANCE, LoadedProgram, load
from pt2q.deploy.executorch.shared_dequantizes import share_dequantizes
from pt2q.deploy.export import (
    ONE_EXPORT,
    export_rewritten,
    in_float32,
    refuse_prepared,
    why_not_groups,
)
from pt2q.deploy.provenance import provenance_of_all
from pt2q.deploy.signature import dynamic_shapes as dynamic_shapes_of
from pt2q.deploy.signature import signature_of, unbounded_sizes
from pt2q.errors import LoweringError, UnboundedSizeWarning
from pt2q.files import write_bytes
from pt2q.ir import ops
from pt2q.ir.module import QuantGraphModule, copy_module
from pt2q.ir.qparams import quantized_nodes
from pt2q.ir.torch_private import compiled_when_asked, composites_looked_up_once
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


Model = nn.Module | ExportedProgram
FORWARD = "forward"
"""What the method of a single model is called."""


def lower(
    converted: Model | Mapping[str, Model],
    args: tuple[Any, ...] | Mapping[str, tuple[Any, ...]] = (),
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    check: bool = True,
) -> Program:
    """Lower a converted (or plain float) model to an ExecuTorch program that runs on XNNPACK.

    Args:
        converted: what `convert_pt2e` gave, any module that `torch.export` takes, or a program
            that is exported already (then the other arguments are not used). Several by name
            become methods of one program; they share constants, and buffers of one name.
        args: example inputs; of several models, by name, as the following.
        kwargs: example keyword inputs.
        dynamic_shapes: as for `torch.export.export`. Memory is planned for the largest sizes: a
            dimension without an upper bound is bounded by the example, and an
            `UnboundedSizeWarning` says so. A model with convolutions that is exported
            with an example batch below 16 runs up to batch 15 only; give 16 or more.
        check: run the program in the ExecuTorch runtime and compare it with a converted model on
            the example inputs.

    Returns:
        The program with its delegation.

    Raises:
        FlowError: the model is prepared, not converted.
        LoweringError: the model cannot be lowered; the message says why.
        DisagreementError: the program does not compute what the converted model does.
        MissingDependencyError: executorch is not installed.
    """
    program, _ = packed(converted, args, kwargs=kwargs, dynamic_shapes=dynamic_shapes)
    if not check:
        return program
    if not isinstance(converted, Mapping):
        _compare(program, FORWARD, converted, args, kwargs)
        return program
    for name, model in converted.items():
        examples = (dict(given or {}).get(name) for given in (args, kwargs))
        _compare(program, name, model, *examples)
    return program


def _compare(program: Program, method: str, model: Model, args: Any, kwargs: Any) -> None:
    """Compare a method with its model on the example inputs, where there are any."""
    given = (tuple(args or ()), dict(kwargs or {}))
    if isinstance(model, ExportedProgram):
        given = model.example_inputs or given
    if any(given):
        call = Call.of(model, *given)
        check_agreement(
            model,
            call,
            lambda call: program.load().method(method)(*call.leaves()),
            "ExecuTorch",
        )


def packed(
    converted: Model | Mapping[str, Model],
    args: tuple[Any, ...] | Mapping[str, tuple[Any, ...]] = (),
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
) -> tuple[Program, Any]:
    """What `lower` gives, with ExecuTorch's own account of it, an ``ExecutorchProgramManager``."""
    (exir,) = optional_modules("executorch.exir", extra="executorch")
    if not isinstance(converted, Mapping):
        converted, args = {FORWARD: converted}, {FORWARD: tuple(args)}
        kwargs, dynamic_shapes = {FORWARD: kwargs}, {FORWARD: dynamic_shapes}
    given: list[dict[str, Any]] = [dict(x or {}) for x in (args, kwargs, dynamic_shapes)]
    _check_names(converted, given)
    origin = provenance_of_all(converted, "executorch")
    programs = {
        name: _exported(model, given[0].get(name), given[1].get(name), given[2].get(name))
        for name, model in converted.items()
    }
    try:
        # With gradients, ExecuTorch fails on buffers that are written into.
        with ONE_EXPORT, _cheaper(), torch.no_grad():
            return _packed(programs, exir, origin)
    except Exception as error:
        raise LoweringError(
            f"ExecuTorch could not lower the model: {first_line(error).rstrip('.')}"
            f"{''.join(map(why_not_bodies, programs.values()))}"
            f"{''.join(why_not_groups(program.graph) for program in programs.values())}"
            f"{''.join(why_not_grouped_scales(program.graph) for program in programs.values())}"
        ) from error


@contextmanager
def _cheaper() -> Iterator[None]:
    """Without work that leaves no trace in the program."""
    with (
        quiet_python(),
        composites_looked_up_once(),
        shared_node_sources(),
        sought_where_possible(),
        gone_through_where_changed(),
        compiled_when_asked(),
        taken_apart_where_needed(),
    ):
        yield


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
                stacklevel=6,
            )


def _check_names(converted: Mapping[str, Model], given: list[dict[str, Any]]) -> None:
    unknown = sorted({name for x in given for name in x} - converted.keys())
    if unknown or not converted:
        raise LoweringError(
            f"no model is called {', '.join(unknown) or 'anything'}: there are "
            f"{list(converted)}. Give models, example inputs and dynamic shapes by the same names"
        )
    if PROVENANCE in converted:
        raise LoweringError(
            f"{PROVENANCE} is the method that says where a program comes from: give the model "
            "another name"
        )


def _exported(
    model: Model, args: Any, kwargs: Mapping[str, Any] | None, dynamic_shapes: Any
) -> ExportedProgram:
    """The program that ExecuTorch is given for a model."""
    refuse_prepared(model)
    if isinstance(model, ExportedProgram) and _needs_rewriting(model):
        args, kwargs = model.example_inputs or (args, kwargs)
        dynamic_shapes = dynamic_shapes_of(model, signature_of(model))
        model = copy_module(model.module(check_guards=False))
    if not isinstance(model, ExportedProgram):
        model = export_rewritten(model, _for_xnnpack, args or (), kwargs, dynamic_shapes)
    refuse_other_types(model.graph)
    refuse_weight_only(model.graph)
    refuse_measured_constants(model)
    _warn_of_unbounded_sizes(model)
    return model


def _packed(
    programs: dict[str, ExportedProgram], exir: Any, origin: str | None
) -> tuple[Program, Any]:
    constants = None if origin is None else {PROVENANCE: origin}
    edge = exir.to_edge_transform_and_lower(
        programs,
        transform_passes=[without_idle_expansions] if _expands(programs) else None,
        partitioner={name: [xnnpack_partitioner()] for name in programs},
        constant_methods=constants,
    )
    # Before packing, which rewrites the graph into allocations and out variants.
    found = {name: delegation_of(edge.exported_program(name).graph_module) for name in programs}
    manager = edge.to_executorch(_configuration(exir, edge, list(programs)))
    return Program(bytes(manager.buffer), delegation_of_all(found)), manager


def _expands(programs: Mapping[str, ExportedProgram]) -> bool:
    """Whether there are expansions, or products that are taken apart into some."""
    nodes = (node for program in programs.values() for node in program.graph.nodes)
    return any(ops.is_op(node, ops.MATMUL | ops.SDPA | ops.REPEAT) for node in nodes)


def _configuration(exir: Any, edge: Any, methods: list[str]) -> Any:
    """Have the program carry the values that written buffers start from, and methods share them.

    ExecuTorch allocates such buffers and leaves them at that. Zeros, which a cache starts from,
    need not be carried: the runtime's memory is zero.
    """
    initial, memory = optional_modules(
        "executorch.exir.passes.init_mutable_pass",
        "executorch.exir.passes.memory_planning_pass",
        extra="executorch",
    )
    programs = [edge.exported_program(method) for method in methods]
    names = sorted({name for program in programs for name in _not_zero(program)})
    passes = [initial.InitializedMutableBufferPass(names)] if names else []
    if len(methods) == 1:
        return exir.ExecutorchBackendConfig(passes=passes)
    planning = memory.MemoryPlanningPass(share_mutable_buffers=True)
    return exir.ExecutorchBackendConfig(passes=passes, memory_planning_pass=planning)


def _not_zero(program: Any) -> list[str]:
    """The inputs of a program that are written buffers and start from something."""
    signature = program.graph_signature
    written = set(signature.buffers_to_mutate.values())
    return [
        name
        for name, buffer in signature.inputs_to_buffers.items()
        if buffer in written and bool(_initial_value(program, buffer).any())
    ]


def _initial_value(program: Any, buffer: str) -> torch.Tensor:
    found = program.state_dict.get(buffer)
    value: torch.Tensor = program.constants[buffer] if found is None else found
    return value


def _needs_rewriting(program: ExportedProgram) -> bool:
    """Whether an exported program is not in the form that XNNPACK and the runtime take."""
    if not quantized_nodes(program.graph_module):
        return False
    module = program.module(check_guards=False)
    return bool(
        half_types(module)
        or quantized_lookups(module)
        or quantized_picks(module)
        or attentions(module)
        or delegable(module)
    )


def _for_xnnpack(model: nn.Module) -> nn.Module:
    """Trained models come with biases still tied; quantized kernels compute in float32, and pad
    integers."""
    if not isinstance(model, QuantGraphModule):
        return model
    copied = run_passes(copy_module(model), [OwnBiases()])
    in_float32(copied, "XNNPACK")
    round_pads(copied)
    picks_as_lookups(copied)
    fuse_lookups(copied)
    attention_in_parts(copied)
    store_known_parts(copied)
    delegable_forms(copied)
    share_dequantizes(copied)
    return copied
