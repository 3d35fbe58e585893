"""The main calls: prepare, calibrate or train, convert. Each is a visible list of passes."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.export import ExportedProgram
from torch.fx import GraphModule

from pt2q.errors import (
    BatchNormNotFoldedWarning,
    FlowError,
    NotExportedError,
    NothingQuantizedWarning,
    ReferenceIncompleteWarning,
)
from pt2q.ir.control_flow import boundary_links, graph_modules, named_graph_modules
from pt2q.ir.model_state import keep_state, restore_state
from pt2q.ir.modes import switch_mode
from pt2q.ir.module import (
    EXPORT_HINT,
    QuantGraphModule,
    Stage,
    copy_module,
    deferred_code,
    import_exported,
)
from pt2q.ir.record import stage_of
from pt2q.observers.foreign import replacement_for
from pt2q.passes import (
    CloseControlFlow,
    DuplicateDQPass,
    FoldConvBatchNorm,
    FoldConvBatchNormQAT,
    FoldQuantizedConstants,
    FuseConvBatchNormQAT,
    InsertObservers,
    ObserversToQDQ,
    OpenControlFlow,
    OwnTensors,
    Pass,
    PortNodeMetaForQDQ,
    RemoveUnusedAttributes,
    RemoveUnusedConstants,
    RewriteToReference,
    SizeLearnedScales,
    run_passes,
)
from pt2q.passes.reference import ReferenceReport
from pt2q.spec import Quantizer, annotated_apart
from pt2q.spec.foreign import adopt_annotations
from pt2q.spec.plan import Plan, build_plan


def prepare_pt2e(
    model: ExportedProgram | GraphModule, quantizer: Quantizer, *, fold_batch_norm: bool = True
) -> QuantGraphModule:
    """Insert observers into an exported model, for post-training quantization.

    Args:
        model: what ``torch.export.export`` returned, or its ``.module()``. It is not changed;
            the result shares its parameters, and has copies of the buffers that it writes into.
        quantizer: says what is quantized and how.
        fold_batch_norm: fold inference-mode batch norms into the convolution or linear before
            them where that provably keeps the function.

    Returns:
        The prepared module. Call it with representative inputs to calibrate, then hand it to
        `convert_pt2e`.

    Raises:
        NotExportedError: the model was not captured with ``torch.export``.
        FlowError: the model is prepared or converted already.
        AnnotationError, SharingError: the quantizer's annotations contradict the graph or
            each other.
    """
    with deferred_code(), paused_collection():
        prepared = import_exported(model)
        keep_state(prepared)
        run_passes(prepared, [OpenControlFlow()])
        if fold_batch_norm:
            run_passes(prepared, [FoldConvBatchNorm()])
        plan = annotate(prepared, quantizer)
        run_passes(prepared, [_insertion(plan, quantizer, is_qat=False)])
    prepared.recompile()
    prepared.record.stage = Stage.PREPARED
    _warn(prepared, plan)
    return prepared


@contextmanager
def paused_collection() -> Iterator[None]:
    """Within it, Python's cyclic garbage collector does not run.

    A graph is many small objects that all stay: each full collection walks all of them and frees
    nothing, which is a third of the time of a large model.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def prepare_qat_pt2e(
    model: ExportedProgram | GraphModule, quantizer: Quantizer, *, fast: bool = False
) -> QuantGraphModule:
    """Insert fake quantizers into an exported model, for quantization-aware training.

    Batch norms stay, and train: what is rounded is the weight with its batch norm folded in
    (`FuseConvBatchNormQAT`), which is the weight that `convert_pt2e` deploys.

    Args:
        model: what ``torch.export.export`` returned, or its ``.module()``. It is not changed;
            the result shares its parameters, which training then moves.
        quantizer: its specs make fake quantizers: `FusedMovingAvgObsFakeQuantize` and its kin.
            A `NothingQuantizedWarning` says so if not one of them does.
        fast: train with a batch norm that undoes the weight's scaling by itself. The function is
            the same; its rounding errors are not those of ``torch.ao.nn.intrinsic.qat``.

    Returns:
        The prepared module, in the mode in which it was exported. Call ``.train()``, train it,
        and hand it to `convert_pt2e`.

    Raises:
        NotExportedError: the model was not captured with ``torch.export``.
        FlowError: the model is prepared or converted already.
        AnnotationError, SharingError: the quantizer's annotations contradict the graph or
            each other.
    """
    with deferred_code(), paused_collection():
        prepared = import_exported(model)
        run_passes(prepared, [OpenControlFlow()])
        _annotate(prepared, quantizer)
        run_passes(prepared, [FuseConvBatchNormQAT(fast)])
        plan = _plan(prepared)
        run_passes(prepared, [_insertion(plan, quantizer, is_qat=True), SizeLearnedScales()])
    prepared.recompile()
    prepared.record.stage = Stage.PREPARED_QAT
    _warn(prepared, plan)
    if plan.groups and not any(hasattr(m, "fake_quant_enabled") for m in prepared.modules()):
        warnings.warn(
            "the quantizer's specs make observers, no fake quantizers: training does not see the "
            "rounding. Give it a configuration for training, such as "
            "get_symmetric_quantization_config(is_qat=True) or OnnxQDQQuantizer.tensorrt("
            "is_qat=True)",
            NothingQuantizedWarning,
            stacklevel=2,
        )
    return prepared


def annotate(model: QuantGraphModule, quantizer: Quantizer) -> Plan:
    """Let a quantizer transform, annotate and validate a model, and resolve what it says.

    Args:
        model: changed in place by ``transform_for_annotation`` and by the annotations.
        quantizer: the backend's, or the user's own.

    Returns:
        The plan; printing it shows every sharing group.
    """
    _annotate(model, quantizer)
    return _plan(model)


def _plan(model: QuantGraphModule) -> Plan:
    graphs = [module.graph for module in graph_modules(model)]
    return build_plan(*graphs, links=boundary_links(model))


def _annotate(model: QuantGraphModule, quantizer: Quantizer) -> None:
    _check_quantizer(quantizer)
    for module in graph_modules(model):
        _take(module, quantizer.transform_for_annotation(module))
    for module in annotated_apart(quantizer, model):
        _take(module, quantizer.annotate(module))
    for module in graph_modules(model):
        quantizer.validate(module)
        adopt_annotations(module.graph, replacement_for)


def _check_quantizer(quantizer: object) -> None:
    missing = [
        name
        for name in ("transform_for_annotation", "annotate", "validate")
        if not callable(getattr(quantizer, name, None))
    ]
    if missing or isinstance(quantizer, type):
        what = quantizer.__name__ if isinstance(quantizer, type) else type(quantizer).__name__
        raise FlowError(
            f"{what} is no quantizer instance (it lacks {missing or 'being instantiated'}); "
            "pass an object such as XNNPACKQuantizer()"
        )


def _take(model: GraphModule, result: Any) -> None:
    """Adopt what a quantizer gave back, which may be another module."""
    if result is model or result is None:
        return
    if not isinstance(result, GraphModule):
        raise FlowError(f"a quantizer must give back the model, found {type(result).__name__}")
    moved = copy_module(result)
    model.__dict__.update({k: moved.__dict__[k] for k in ("_modules", "_parameters", "_buffers")})
    model.graph = moved.graph


def _insertion(plan: Plan, quantizer: Quantizer, *, is_qat: bool) -> Pass:
    callback = getattr(quantizer, "prepare_obs_or_fq_callback", None)
    return InsertObservers(plan, callback, is_qat)


def _named_own_modules(model: QuantGraphModule) -> list[tuple[str, QuantGraphModule]]:
    return [(p, m) for p, m in named_graph_modules(model) if isinstance(m, QuantGraphModule)]


def _warn(model: QuantGraphModule, plan: Plan) -> None:
    kept = [
        f"{path}{note.node}: {note.text}"
        for path, module in _named_own_modules(model)
        for note in module.record.notes
        if note.origin.startswith("conv_bn")
    ]
    if kept:
        lines = "\n".join(f"  {note}" for note in kept)
        warnings.warn(
            f"{len(kept)} batch norm(s) stay in the model:\n{lines}",
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


def convert_pt2e(
    model: GraphModule,
    use_reference_representation: bool = False,
    fold_quantize: bool = True,
) -> QuantGraphModule:
    """Replace the observers of a calibrated or trained model by quantize / dequantize operators.

    Buffers that a post-training model writes into, such as caches, start from the values they had
    when it was prepared: calibration leaves nothing behind. Those of a trained model stay.

    Args:
        model: what `prepare_pt2e` or `prepare_qat_pt2e` returned, after calibration or
            training. It is not changed: it may be trained on and converted again.
        use_reference_representation: rewrite the quantized operators to integer arithmetic.
        fold_quantize: store weights quantized; False keeps them in float behind a quantize.

    Returns:
        The converted module, in evaluation mode's graph; it can be exported again with
        ``torch.export.export``, saved and lowered.

    Raises:
        FlowError: the model was never prepared, or is converted already.
        NoDataError: an activation observer saw no data.
    """
    _check_prepared(model)
    assert isinstance(model, QuantGraphModule)
    with deferred_code(), paused_collection():
        converted = copy_module(model, model.record.at_stage(Stage.CONVERTED))
        restore_state(converted)
        if model.record.stage is Stage.PREPARED_QAT:
            switch_mode(converted, False)
            run_passes(converted, [FoldConvBatchNormQAT(), FoldConvBatchNorm()])
        passes = conversion_passes(
            fold_quantize=fold_quantize, reference=use_reference_representation
        )
        run_passes(converted, passes)
        if model.record.stage is Stage.PREPARED_QAT:
            run_passes(converted, [OwnTensors()])
    converted.recompile()
    for module in converted.modules():
        module.training = False  # export's module says True even of a graph in evaluation mode
    if use_reference_representation:
        _warn_of_float(converted)
    return converted


def conversion_passes(*, fold_quantize: bool, reference: bool = False) -> list[Pass]:
    """The pipeline of `convert_pt2e`, in order.

    Args:
        fold_quantize: whether constants are stored quantized.
        reference: whether quantized operators become integer arithmetic.
    """
    passes: list[Pass] = [
        ObserversToQDQ(),
        RemoveUnusedConstants(),
        DuplicateDQPass(),
        PortNodeMetaForQDQ(),
    ]
    if fold_quantize:
        passes.append(FoldQuantizedConstants())
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
        for path, module in _named_own_modules(model)
        if (report := module.record.get(ReferenceReport)) is not None
        for item in report.left
        if item.between
    ]
    if left:
        lines = "\n".join(f"  {item}" for item in left)
        warnings.warn(
            f"{len(left)} quantized operator(s) stay in float in the reference representation:\n"
            f"{lines}\nGive them a rule (pt2q.passes.reference.reference_rule) or leave them "
            "unquantized",
            ReferenceIncompleteWarning,
            stacklevel=3,
        )


def _check_prepared(model: object) -> None:
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
