"""Every exception and warning pt2q raises on purpose, by name.

Each message says what was expected, what was found, where, and the way out.
"""

from __future__ import annotations

from pt2q.caution import (
    AlreadyQuantizedWarning as AlreadyQuantizedWarning,
)
from pt2q.caution import (
    BatchNormNotFoldedWarning as BatchNormNotFoldedWarning,
)
from pt2q.caution import (
    CalibrationWarning as CalibrationWarning,
)
from pt2q.caution import (
    ComputesInFloat32Warning as ComputesInFloat32Warning,
)
from pt2q.caution import (
    DataOrderWarning as DataOrderWarning,
)
from pt2q.caution import (
    NoDataWarning as NoDataWarning,
)
from pt2q.caution import (
    NotCheckedWarning as NotCheckedWarning,
)
from pt2q.caution import (
    NothingQuantizedWarning as NothingQuantizedWarning,
)
from pt2q.caution import (
    ObserverReplacedWarning as ObserverReplacedWarning,
)
from pt2q.caution import (
    PluginWarning as PluginWarning,
)
from pt2q.caution import (
    Pt2qWarning as Pt2qWarning,
)
from pt2q.caution import (
    ReferenceIncompleteWarning as ReferenceIncompleteWarning,
)
from pt2q.caution import (
    SmallestScaleWarning as SmallestScaleWarning,
)
from pt2q.caution import (
    TiedInputsWarning as TiedInputsWarning,
)
from pt2q.caution import (
    TrainingModeWarning as TrainingModeWarning,
)
from pt2q.caution import (
    UnboundedSizeWarning as UnboundedSizeWarning,
)
from pt2q.caution import (
    UnmatchedRuleWarning as UnmatchedRuleWarning,
)


class Pt2qError(Exception):
    """Base of all errors raised by pt2q."""


class NotExportedError(Pt2qError, TypeError):
    """A module that was never captured with ``torch.export`` was given.

    Cause: Eager modules, scripted modules and graphs traced with ``torch.fx`` hold no program
    of ATen operators, which is what is quantized and deployed.

    Way out: Call ``torch.export.export(model, args)`` first and hand over what it returns, or
    its ``.module()``.
    """


class SpecError(Pt2qError, ValueError):
    """A quantization spec contradicts itself, its dtype or the tensor it is for.

    Cause: A dtype that nothing is quantized to, a range that does not fit it or is empty, a
    ``ch_axis`` without a per-channel scheme or such a scheme without it, groups that do not
    divide a weight, or a statement to a quantizer that is neither a configuration nor None.

    Way out: The message names the argument, what was found and what is allowed.
    ``get_symmetric_quantization_config`` and its kin make specs that fit their backend;
    ``dataclasses.replace`` changes one field.
    """


class IntegerRangeError(SpecError, AssertionError):
    """The integers that an observer or a fake quantizer is to use do not fit its dtype.

    Cause: ``quant_min`` is not below ``quant_max``, or one of them lies outside the dtype.
    Elsewhere in PyTorch's quantization world an assertion fails here, so this is an
    ``AssertionError`` too.

    Way out: Give integers of the dtype, as the message names them, or leave both out for all.
    """


class AnnotationError(Pt2qError, ValueError):
    """An annotation names a node, edge or tensor that cannot be quantized as asked.

    Cause: A quantizer annotates an edge that the node does not read, gives a spec of an unknown
    class, or asks for what its backend has no kernel for.

    Way out: The message names the node and its inputs. In a quantizer of your own, annotate
    ``node.all_input_nodes`` only; in one of ours, choose a configuration that its backend runs,
    as the page on quantizers lists them.
    """


class SharingError(AnnotationError):
    """Sharing references cannot be resolved: a cycle or a dangling reference.

    Cause: Shared or derived specs refer to each other in a circle, or to an edge or node that
    nobody quantizes.

    Way out: Annotate one member of the circle with a `QuantizationSpec` or
    `FixedQParamsQuantizationSpec`, and every tensor that is referred to.
    """


class AnnotationChangedError(AnnotationError, RuntimeError):
    """A quantizer of a `ComposableQuantizer` overwrites what one before it has annotated.

    Cause: It annotates nodes that have an annotation already, or takes annotations away.

    Way out: Make it pass over annotated nodes, or change the order of the quantizers.
    """


class FlowError(Pt2qError, RuntimeError):
    """The main calls were made in an order that makes no sense.

    Cause: A model is prepared twice, converted before it is prepared or after it is converted,
    deployed before it is converted, or given a class in place of a quantizer's instance.

    Way out: The order is ``torch.export.export``, `prepare_pt2e` or `prepare_qat_pt2e`,
    calibration or training, `convert_pt2e`, deployment. Keep the exported program to begin
    again from it.
    """


class NoDataError(Pt2qError, RuntimeError):
    """An observer was asked for quantization parameters but never saw data.

    Cause: The prepared model was not called before `convert_pt2e`, or the calibration inputs
    never reached the operators that the message names, such as the other branch of a ``cond``.

    Way out: Call the prepared model with representative inputs that reach them, or leave them
    in float: ``quantizer.set_module_name(name, None)``.
    """


class SharedTensorError(Pt2qError, ValueError):
    """Programs that are quantized together do not have their tensors in common.

    Cause: What has one name differs between them, or one only reads what another writes.

    Way out: Export all from one model, so that names say what is one tensor; let each program
    write the state that it reads, or hand it over as an input.
    """


class NonFiniteActivationError(Pt2qError, ValueError):
    """NaN reached an observer.

    Cause: The calibration data holds NaN, or the float model computes it from that data.

    Way out: Call the float model with the same batch and find the operator that makes the first
    NaN; the message names the node at which it was seen.
    """


class MergeError(Pt2qError, TypeError):
    """What several processes observed cannot be put together.

    Cause: An observer that keeps statistics and has no ``merge``, a fake quantizer that rounds
    while it watches, or a program that remembers something from batch to batch, so that a batch
    means nothing without those before it.

    Way out: Give an observer of your own ``merge(statistics)``, train with
    ``DistributedDataParallel`` and ``synchronize_observers``, or calibrate in one process.
    """


class DistributedError(Pt2qError, RuntimeError):
    """Processes that work together had to stop: one of them failed, or they do not fit together.

    Cause: Another process raised an error or died, was given other models or batches, or was
    started for another number of processes than the checkpoint it is to go on from.

    Way out: The message names the process and what it said; mend that and start all of them
    again, with ``resume`` where there is a checkpoint.
    """


class InputShapeError(Pt2qError, ValueError):
    """A prepared, converted or deployed model was called with inputs it was not made for.

    Cause: Export specialises each size that it is not told to be dynamic. A size, rank, type or
    number of inputs differs from those that the model was exported with.

    Way out: Export again with that dimension dynamic and an example size of 2 or more (the
    message holds the ``dynamic_shapes`` to pass), or call the model with the exported size.
    """


class LoweringError(Pt2qError, RuntimeError):
    """A converted model could not be lowered to, or run by, a runtime.

    Cause: The target has no kernel for what the model asks of it (uint8 activations on XNNPACK,
    int8 activations on Inductor, a quantized weight with a float input), ``torch.export``
    cannot capture the model with the given inputs, or the runtime's own compiler fails; its
    first line is quoted.

    Way out: Quantize with the quantizer that is made for the target. Where one operator is
    named, leave it in float: ``quantizer.set_module_name(name, None)``. Lower the float model
    to see whether quantization has a part in it.
    """


class DisagreementError(LoweringError):
    """A deployed file computes something else than the model that it was made from.

    Cause: The runtime, or the way to it, has a defect that this model meets: both were run on the
    same inputs, and differ by more than roundings do.

    Way out: ``pt2q compare`` and a run of parts of the model show where; leave that in float, or
    quantize it in another mode. Another release of the runtime may be right. ``check=False`` writes
    the file all the same, to be looked into.
    """


class RequirementError(Pt2qError, RuntimeError):
    """A result is not what a recipe requires, and is not written.

    Cause: Nothing was quantized, or less than ``[require] quantized`` asks for, or the file is
    further from float than ``min_sqnr`` allows.

    Way out: ``--report`` says why operators stay in float and ``pt2q compare`` where accuracy is
    lost. Lower what is required if the result will do.
    """


class MissingDependencyError(Pt2qError, ImportError):
    """An optional dependency is needed for this call and is not installed.

    Cause: Runtimes are optional: each belongs to an extra of the package.

    Way out: Install the extra that the message names, for instance ``pip install
    "pt2q[executorch]"``.
    """


class DataError(Pt2qError, ValueError):
    """Calibration data or a model file could not be read or does not fit the model.

    Cause: The file is missing, incomplete or of another kind, or its arrays do not have the
    names, types or sizes of the model's inputs.

    Way out: The message names the file, and what the model takes. Write a ``.pt2`` with
    ``torch.export.save`` and inputs with ``numpy.savez(file, **arrays_by_input_name)``.
    """


class UntrustedFileError(DataError):
    """A model file holds what may run code when it is loaded.

    Cause: Its archive has a pickle of more than tensors, an expression that is no arithmetic, or a
    call of a function that is no operator. A program with example inputs of a class of its own has
    such a pickle without any harm meant.

    Way out: Where you trust the file as you would a program: ``pt2q --trust COMMAND``. To write one
    that needs no trust, export with tensors, numbers, tuples, lists and dicts as inputs.
    """


class SaveError(Pt2qError, OSError):
    """A file could not be written where it was asked for.

    Cause: The folder cannot be made or written to, the disk is full, the name is a folder, or its
    suffix is not that of the kind of file.

    Way out: Choose another path, or free space. What stood there before is untouched.
    """


class UnknownNameError(DataError):
    """Nothing of this kind has this name.

    Cause: A backend or another registered thing is misspelt, or the package that offers it is
    not installed.

    Way out: Choose from the names in the message, or install the package.
    """


class PluginError(Pt2qError, ImportError):
    """An installed package offers something to pt2q that cannot be used.

    Cause: Its entry point cannot be imported, or is not what its group holds.

    Way out: Update or uninstall the package that the message names; it is no part of pt2q.
    """


class RecipeError(Pt2qError, ValueError):
    """A recipe file could not be read, or asks for what cannot be.

    Cause: The file is no TOML, holds an unknown key or value, or asks for what its backend does
    not run.

    Way out: The message gives the line and what is allowed there. ``pt2q recipe init`` writes a
    recipe that is right.
    """


class ComparisonError(Pt2qError, ValueError):
    """Two models, or the inputs to compare them on, do not fit each other.

    Cause: The second model was not made from the first, the first is quantized already, the
    models were called a different number of times, or a batch does not hold the arguments of
    one call.

    Way out: Compare an exported program with what was prepared or converted from it. A tuple
    holds the arguments of one call; several batches come as a list.
    """


class SearchError(Pt2qError, ValueError):
    """What a search is asked for cannot be searched.

    Cause: A candidate or a cost is not known, there is no bound or more than one, or no layer of
    the model is quantized.

    Way out: The message names what is allowed. ``pt2q inspect`` says which layers a backend
    quantizes.
    """


class GraphLawError(Pt2qError, AssertionError):
    """A pass broke one of the laws of the graph.

    Cause: A defect of a pass, or of foreign code that edited a graph: it is raised by
    ``VerifyReport.raise_if_broken`` and while `verified_passes` watches, never in ordinary use.

    Way out: Mend the pass that the message names. For a pass of pt2q, report it with the
    exported program.
    """
