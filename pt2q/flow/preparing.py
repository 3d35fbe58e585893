"""From an exported model to one that observes, or that trains with rounding."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import overload

from torch.export import ExportedProgram
from torch.fx import GraphModule

from pt2q.collection import paused_collection
from pt2q.errors import (
    AlreadyQuantizedWarning,
    BatchNormNotFoldedWarning,
    FlowError,
    NothingQuantizedWarning,
    TrainingModeWarning,
)
from pt2q.flow.annotating import annotate, ask, resolve, resolve_together
from pt2q.flow.modules import own_modules
from pt2q.flow.owned_weights import own_scaled_weights
from pt2q.flow.provenance import Provenance
from pt2q.ir.model_state import keep_state, unite_kept_state
from pt2q.ir.modes import switch_dropouts_off
from pt2q.ir.module import QuantGraphModule, Stage, deferred_code, import_exported
from pt2q.ir.qparams import quantized_nodes
from pt2q.ir.shared_tensors import check_state, unite_tensors
from pt2q.listing import listed
from pt2q.observers.make import Observers, make_observers
from pt2q.passes import (
    FoldConvBatchNorm,
    FuseConvBatchNormQAT,
    InsertObservers,
    OpenControlFlow,
    Pass,
    SizeLearnedScales,
    run_passes,
)
from pt2q.quantizers import TableQuantizer
from pt2q.spec import Quantizer
from pt2q.spec.plan import Plan


@overload
def prepare_pt2e(
    model: ExportedProgram | GraphModule, quantizer: Quantizer, *, fold_batch_norm: bool = True
) -> QuantGraphModule: ...


@overload
def prepare_pt2e(
    model: Mapping[str, ExportedProgram | GraphModule],
    quantizer: Quantizer,
    *,
    fold_batch_norm: bool = True,
) -> dict[str, QuantGraphModule]: ...


def prepare_pt2e(
    model: ExportedProgram | GraphModule | Mapping[str, ExportedProgram | GraphModule],
    quantizer: Quantizer,
    *,
    fold_batch_norm: bool = True,
) -> QuantGraphModule | dict[str, QuantGraphModule]:
    """Insert observers into an exported model, for post-training quantization.

    Args:
        model: what ``torch.export.export`` returned, or its ``.module()``. It is not changed;
            the result shares its parameters, and has copies of the buffers that it writes into.
            Several programs of one model by name, such as prefill and decode, have their weights
            and what they remember in common, with one set of parameters each.
        quantizer: says what is quantized and how.
        fold_batch_norm: fold inference-mode batch norms into the convolution or linear before
            them where that provably keeps the function.

    Returns:
        The prepared module, or those of several programs by name. Call it with representative
        inputs to calibrate, then hand it to `convert_pt2e`.

    Raises:
        NotExportedError: the model was not captured with ``torch.export``.
        FlowError: the model is prepared or converted already, or there is no program.
        AnnotationError, SharingError: the quantizer's annotations contradict the graph or
            each other.
        SharedTensorError: programs do not have in common what they call by one name.
    """
    if isinstance(model, Mapping):
        folds = [FoldConvBatchNorm()] if fold_batch_norm else []
        return _prepare_programs(model, quantizer, folds, Stage.PREPARED)[0]
    with _preparing(model, Stage.PREPARED) as prepared:
        if fold_batch_norm:
            run_passes(prepared, [FoldConvBatchNorm()])
        plan = annotate(prepared, quantizer)
        run_passes(prepared, [_insertion(plan, quantizer, is_qat=False)])
    _warn(prepared, plan)
    prepared.record.put(Provenance.of(quantizer, trained=False))
    return prepared


def _prepare_programs(
    models: Mapping[str, ExportedProgram | GraphModule],
    quantizer: Quantizer,
    passes: Sequence[Pass],
    stage: Stage,
) -> tuple[dict[str, QuantGraphModule], Plan]:
    """Prepare programs by one plan: what is one value for them has one observer."""
    is_qat = stage is Stage.PREPARED_QAT
    with _preparing_all(models, stage) as prepared:
        for model in prepared.values():
            # What is fused for training depends on what is quantized; what is folded does not.
            run_passes(model, () if is_qat else passes)
            ask(model, quantizer)
            _note_report(model, quantizer)
            run_passes(model, passes if is_qat else ())
        unite_tensors(prepared, made=True)
        plan = resolve_together(prepared)
        observers = make_observers(plan, is_qat=is_qat)
        for model in prepared.values():
            run_passes(model, [_insertion(plan, quantizer, is_qat=is_qat, observers=observers)])
            if is_qat:
                _tell_fake_quantizers(model)
    for model in prepared.values():
        _warn(model, plan)
        model.record.put(Provenance.of(quantizer, trained=is_qat))
    return prepared, plan


def _tell_fake_quantizers(model: QuantGraphModule) -> None:
    """What they can know of their inputs before training."""
    run_passes(model, [SizeLearnedScales()])
    own_scaled_weights(model)


def _note_report(model: QuantGraphModule, quantizer: Quantizer) -> None:
    """Keep what the quantizer says of one program: it goes on to the next."""
    if isinstance(quantizer, TableQuantizer):
        model.record.put(quantizer.report())


@contextmanager
def _preparing_all(
    models: Mapping[str, ExportedProgram | GraphModule], stage: Stage
) -> Iterator[dict[str, QuantGraphModule]]:
    """See `_preparing`; what the programs have in common is one tensor."""
    if not models:
        raise FlowError("there is no program to prepare: the mapping is empty")
    with ExitStack() as stack:
        prepared = {
            name: stack.enter_context(_preparing(model, stage)) for name, model in models.items()
        }
        unite_tensors(prepared)
        check_state(prepared)
        unite_kept_state(tuple(prepared.values()))
        yield prepared


@overload
def prepare_qat_pt2e(
    model: ExportedProgram | GraphModule, quantizer: Quantizer, *, fast: bool = True
) -> QuantGraphModule: ...


@overload
def prepare_qat_pt2e(
    model: Mapping[str, ExportedProgram | GraphModule], quantizer: Quantizer, *, fast: bool = True
) -> dict[str, QuantGraphModule]: ...


def prepare_qat_pt2e(
    model: ExportedProgram | GraphModule | Mapping[str, ExportedProgram | GraphModule],
    quantizer: Quantizer,
    *,
    fast: bool = True,
) -> QuantGraphModule | dict[str, QuantGraphModule]:
    """Insert fake quantizers into an exported model, for quantization-aware training.

    Batch norms stay, and train: what is rounded is the weight with its batch norm folded in
    (`FuseConvBatchNormQAT`), which is the weight that `convert_pt2e` deploys.

    Args:
        model: what ``torch.export.export`` returned, or its ``.module()``. It is not changed;
            the result shares its parameters, which training then moves. Several programs of one
            model by name have their weights and fake quantizers in common: a step on one of them is
            a step on all.
        quantizer: its specs make fake quantizers: `FusedMovingAvgObsFakeQuantize` and its kin.
            A `NothingQuantizedWarning` says so if not one of them does.
        fast: train with a batch norm that undoes the weight's scaling by itself, which takes less
            time and memory. False: with the operators of ``torch.ao.nn.intrinsic.qat``, and its
            bits. The function is the same; the rounding errors are not.

    Returns:
        The prepared module, in the mode in which it was exported, or those of several programs by
        name. Call ``.train()``, train it, and hand it to `convert_pt2e`.

    Raises:
        NotExportedError, FlowError, AnnotationError, SharingError: as `prepare_pt2e` does.
    """
    fuse = FuseConvBatchNormQAT(fast)
    if isinstance(model, Mapping):
        programs, plan = _prepare_programs(model, quantizer, [fuse], Stage.PREPARED_QAT)
        _warn_if_no_rounding(plan, programs.values())
        return programs
    with _preparing(model, Stage.PREPARED_QAT) as prepared:
        ask(prepared, quantizer)
        run_passes(prepared, [fuse])
        plan = resolve(prepared)
        run_passes(prepared, [_insertion(plan, quantizer, is_qat=True)])
        _tell_fake_quantizers(prepared)
    _warn(prepared, plan)
    prepared.record.put(Provenance.of(quantizer, trained=True))
    _warn_if_no_rounding(plan, [prepared])
    return prepared


def _warn_if_no_rounding(plan: Plan, models: Iterable[QuantGraphModule]) -> None:
    rounding = (hasattr(m, "fake_quant_enabled") for model in models for m in model.modules())
    if plan.groups and not any(rounding):
        warnings.warn(
            "the quantizer's specs make observers, no fake quantizers: training does not see the "
            "rounding. Give it a configuration for training, such as "
            "get_symmetric_quantization_config(is_qat=True) or OnnxQDQQuantizer.tensorrt("
            "is_qat=True)",
            NothingQuantizedWarning,
            stacklevel=3,
        )


@contextmanager
def _preparing(model: ExportedProgram | GraphModule, stage: Stage) -> Iterator[QuantGraphModule]:
    """A copy of a model to work on within the block; after it, its code is up to date."""
    with paused_collection():
        with deferred_code():
            prepared = import_exported(model)
            _warn_if_quantized(prepared)
            if stage is Stage.PREPARED:
                _switch_dropouts_off(prepared)
                keep_state(prepared)  # calibration leaves nothing behind, training does
            run_passes(prepared, [OpenControlFlow()])
            yield prepared
        prepared.recompile()
    prepared.record.stage = stage


def _switch_dropouts_off(model: QuantGraphModule) -> None:
    """Ranges are those of the model in use; a model that draws random numbers has none."""
    drew = switch_dropouts_off(model)
    if drew:
        warnings.warn(
            f"the program was exported in training mode: {', '.join(drew)} drew random numbers, "
            "and was switched off. Call model.eval() before torch.export.export",
            TrainingModeWarning,
            stacklevel=6,
        )


def _warn_if_quantized(model: QuantGraphModule) -> None:
    found = quantized_nodes(model)
    if found:
        warnings.warn(
            f"the program holds {len(found)} quantize and dequantize operator(s) already, such as "
            f"{found[0].name}: what is quantized again is rounded twice, and comparisons are with "
            "the quantized program. Prepare the float program that it was made from",
            AlreadyQuantizedWarning,
            stacklevel=6,
        )


def _insertion(
    plan: Plan, quantizer: Quantizer, *, is_qat: bool, observers: Observers | None = None
) -> Pass:
    callback = getattr(quantizer, "prepare_obs_or_fq_callback", None)
    return InsertObservers(plan, callback, is_qat, observers)


def _warn(model: QuantGraphModule, plan: Plan) -> None:
    kept = [
        f"{path}{note.node}: {note.text}"
        for path, module in own_modules(model)
        for note in module.record.notes
        if note.origin.startswith("conv_bn")
    ]
    if kept:
        warnings.warn(
            listed(f"{len(kept)} batch norm(s) stay in the model:", kept),
            BatchNormNotFoldedWarning,
            stacklevel=3,
        )
    if not plan.groups:
        warnings.warn(
            "the quantizer annotated nothing: the model stays in float. Its rules may name "
            "modules or operators that the model does not have; its report (quantizer.report(), "
            "or --report) says why",
            NothingQuantizedWarning,
            stacklevel=3,
        )
