"""From a calibrated or trained model to one with quantize and dequantize operators."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import get_args, overload

from torch.export import ExportedProgram
from torch.fx import GraphModule

from pt2q.collection import paused_collection
from pt2q.errors import FlowError, NotExportedError, ReferenceIncompleteWarning
from pt2q.flow.modules import own_modules
from pt2q.ir.float_tensors import FloatTensors
from pt2q.ir.graph import named_tensors
from pt2q.ir.model_state import restore_state
from pt2q.ir.modes import switch_dropouts_off, switch_mode
from pt2q.ir.module import EXPORT_HINT, QuantGraphModule, Stage, copy_module, deferred_code
from pt2q.ir.record import stage_of
from pt2q.ir.shared_tensors import unite_tensors
from pt2q.ir.storage import storage_of
from pt2q.listing import listed
from pt2q.passes import (
    CloseControlFlow,
    DuplicateDQPass,
    FoldConvBatchNorm,
    FoldConvBatchNormQAT,
    FoldQuantizedConstants,
    ObserversToQDQ,
    OwnTensors,
    Pass,
    PortNodeMetaForQDQ,
    RemoveUnusedAttributes,
    RemoveUnusedConstants,
    RewriteToReference,
    StoreStateQuantized,
    run_passes,
)
from pt2q.passes.convert.observed_parameters import OnNoData
from pt2q.passes.convert.observers_to_qdq import parameters_of
from pt2q.passes.convert.store_state import kept_in_float
from pt2q.passes.reference import ReferenceReport


@overload
def convert_pt2e(
    model: GraphModule,
    use_reference_representation: bool = False,
    fold_quantize: bool = True,
    fold_quantize_into_mutable_buffers: bool = False,
    *,
    on_no_data: OnNoData = "error",
) -> QuantGraphModule: ...


@overload
def convert_pt2e(
    model: Mapping[str, GraphModule],
    use_reference_representation: bool = False,
    fold_quantize: bool = True,
    fold_quantize_into_mutable_buffers: bool = False,
    *,
    on_no_data: OnNoData = "error",
) -> dict[str, QuantGraphModule]: ...


def convert_pt2e(
    model: GraphModule | Mapping[str, GraphModule],
    use_reference_representation: bool = False,
    fold_quantize: bool = True,
    fold_quantize_into_mutable_buffers: bool = False,
    *,
    on_no_data: OnNoData = "error",
) -> QuantGraphModule | dict[str, QuantGraphModule]:
    """Replace the observers of a calibrated or trained model by quantize / dequantize operators.

    Buffers that a post-training model writes into, such as caches, start from the values they had
    when it was prepared: calibration leaves nothing behind. Those of a trained model stay.

    Args:
        model: what `prepare_pt2e` or `prepare_qat_pt2e` returned, after calibration or
            training. It is not changed: it may be trained on and converted again. Programs that
            were prepared together are converted together, and come back by name.
        use_reference_representation: rewrite the quantized operators to integer arithmetic.
        fold_quantize: store weights quantized; False keeps them in float behind a quantize.
        fold_quantize_into_mutable_buffers: store buffers that the model writes into, such as
            caches, quantized too, where all that is written and read is quantized alike; see
            `pt2q.passes.StoreStateQuantized`.
        on_no_data: what to do about an activation observer that saw no data: ``error``, or
            ``warn`` and leave its tensor in float.

    Returns:
        The converted module, in evaluation mode's graph, with tensors of its own; it can be
        exported again with ``torch.export.export``, saved and lowered.

    Raises:
        FlowError: the model was never prepared, or is converted already.
        NoDataError: an activation observer saw no data.
        ValueError: ``on_no_data`` is none of its values.
    """
    models = model if isinstance(model, Mapping) else {"": model}
    for one in models.values():
        _check_prepared(one)
    if on_no_data not in get_args(OnNoData):
        raise ValueError(f"on_no_data must be 'error' or 'warn', found {on_no_data!r}")
    passes = conversion_passes(
        fold_quantize=fold_quantize,
        fold_state=fold_quantize_into_mutable_buffers,
        reference=use_reference_representation,
        on_no_data=on_no_data,
    )
    with paused_collection():
        with deferred_code():
            converted = _convert_all(models, passes)
        for done in converted.values():
            done.recompile()
    for done in converted.values():
        for module in done.modules():
            module.training = False  # export's module says True even of a graph in evaluation mode
        if use_reference_representation:
            _warn_of_float(done)
    return converted if isinstance(model, Mapping) else converted[""]


def _convert_all(
    models: Mapping[str, GraphModule], passes: list[Pass]
) -> dict[str, QuantGraphModule]:
    """Convert programs step by step, each step in all of them."""
    converted = {name: _own_copy(model) for name, model in models.items()}
    for step in passes:
        whole = _for_all(step, converted)
        for model in converted.values():
            run_passes(model, [whole])
    for name, model in converted.items():
        held = frozenset(map(storage_of, named_tensors(models[name]).values()))
        run_passes(model, [OwnTensors(held)])
    if len(converted) > 1:
        unite_tensors(converted, made=True, made_from=models)
    return converted


def _for_all(step: Pass, models: Mapping[str, QuantGraphModule]) -> Pass:
    """A step of several programs with what it has to know of all of them."""
    if isinstance(step, ObserversToQDQ):
        return replace(step, known=parameters_of(models, step.on_no_data))
    if isinstance(step, StoreStateQuantized) and len(models) > 1:
        found = {
            buffer: f"in {name!r}, {why}"
            for name, model in models.items()
            for buffer, why in kept_in_float(model).items()
        }
        return replace(step, in_float=tuple(found.items()))
    return step


def _own_copy(model: GraphModule) -> QuantGraphModule:
    """A copy of a prepared model, as it runs in evaluation mode, from its first state."""
    assert isinstance(model, QuantGraphModule)
    converted = copy_module(model, model.record.at_stage(Stage.CONVERTED))
    restore_state(converted)
    converted.record.take(FloatTensors)
    if model.record.stage is Stage.PREPARED_QAT:
        switch_mode(converted, False)
        run_passes(converted, [FoldConvBatchNormQAT(), FoldConvBatchNorm()])
    else:
        switch_dropouts_off(converted)
    return converted


def conversion_passes(
    *,
    fold_quantize: bool,
    fold_state: bool = False,
    reference: bool = False,
    on_no_data: OnNoData = "error",
) -> list[Pass]:
    """The pipeline of `convert_pt2e`, in order.

    Args:
        fold_quantize: whether constants are stored quantized.
        fold_state: whether written buffers are.
        reference: whether quantized operators become integer arithmetic.
        on_no_data: what to do about observers that saw no data.
    """
    passes: list[Pass] = [
        ObserversToQDQ(on_no_data),
        RemoveUnusedConstants(),
        DuplicateDQPass(),
        PortNodeMetaForQDQ(),
    ]
    if fold_quantize:
        passes.append(FoldQuantizedConstants())
    if fold_state:
        passes.append(StoreStateQuantized())
    if reference:
        passes += reference_passes()
    passes += [CloseControlFlow(), RemoveUnusedAttributes()]
    return passes


def reference_passes() -> list[Pass]:
    """What `conversion_passes` adds for the reference representation, in order."""
    return [RewriteToReference(), RemoveUnusedConstants()]


def _warn_of_float(model: QuantGraphModule) -> None:
    """Name the quantized operators that have no integer form."""
    left = [
        f"{path}{item}"
        for path, module in own_modules(model)
        if (report := module.record.get(ReferenceReport)) is not None
        for item in report.left
        if item.between
    ]
    if left:
        head = "quantized operator(s) stay in float in the reference representation:"
        warnings.warn(
            f"{listed(f'{len(left)} {head}', left)}\nGive them a rule "
            "(pt2q.passes.reference.reference_rule) or leave them unquantized",
            ReferenceIncompleteWarning,
            stacklevel=3,
        )


def _check_prepared(model: object) -> None:
    if isinstance(model, ExportedProgram):
        raise FlowError(
            "this program was never prepared; call prepare_pt2e(program, quantizer), calibrate "
            "the result, and convert that"
        )
    if not isinstance(model, GraphModule):
        raise NotExportedError(
            f"{type(model).__name__} was never captured with torch.export; {EXPORT_HINT}"
        )
    stage = stage_of(model)
    if stage is Stage.CONVERTED:
        raise FlowError("this model is already converted; use it as it is")
    if stage is Stage.FLOAT:
        raise FlowError(
            "this model was never prepared; call prepare_pt2e(exported, quantizer), calibrate "
            "the result, and convert that"
        )
