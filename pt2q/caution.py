"""Every warning pt2q gives on purpose, by name; read them from `pt2q.errors`."""

from __future__ import annotations


class Pt2qWarning(UserWarning):
    """Base of all warnings given by pt2q."""


class PluginWarning(Pt2qWarning):
    """What an installed package offers to pt2q is left out.

    Cause: A package offers a name that is pt2q's own or another package's, or cannot be
    imported.

    Way out: Update or uninstall the package that the message names. All other names work.
    """


class UnmatchedRuleWarning(Pt2qWarning):
    """A statement to a quantizer matched nothing in the model.

    Cause: A module name, module type or operator is misspelt, or is spelt as in the eager model
    where export calls it something else.

    Way out: Compare with ``exported.module().named_modules()``, or with the operators that
    ``quantizer.report()`` lists.
    """


class NotCheckedWarning(Pt2qWarning):
    """A file was not compared with the model that it was made from.

    Cause: The converted model fails on the example inputs that it was exported with, such as
    token numbers that it does not have: export looks at their shapes alone.

    Way out: Give example inputs that the model takes.
    """


class DataOrderWarning(Pt2qWarning):
    """Arrays of a calibration file are taken in order, as none has the name of an input.

    Cause: The ``.npz`` was written with names of its own. In another order than the model's inputs,
    its arrays would be swapped.

    Way out: Name the arrays like the inputs: ``numpy.savez(file, **arrays_by_input_name)``.
    """


class CalibrationWarning(Pt2qWarning):
    """Calibration data looks as if it were not what the model will see.

    Cause: An input is constant, samples repeat, what was held out lies beyond the ranges found, or
    ranges still grew at the end.

    Way out: Calibrate on more, and on representative, data. Where an input is constant in use, or
    data is short for a reason, nothing.
    """


class TiedInputsWarning(Pt2qWarning):
    """A program does not read one of its inputs, because export took it for another one.

    Cause: ``torch.export.export`` was given one tensor for several inputs, and reads one of them
    in the place of all.

    Way out: Export with a tensor of its own for each input, ``x.clone()`` for instance.
    """


class TrainingModeWarning(Pt2qWarning):
    """A program that was exported in training mode is quantized for use.

    Cause: ``model.eval()`` was not called before ``torch.export.export``, so that dropouts draw
    random numbers in the graph. `prepare_pt2e` switches them off; batch norms stay as they are.

    Way out: Call ``model.eval()`` before the export. ``prepared.train()`` switches dropouts on
    again where calibration wants them.
    """


class AlreadyQuantizedWarning(Pt2qWarning):
    """A program that holds quantize and dequantize operators is prepared.

    Cause: It was converted, and exported again, or comes from another library's quantization.

    Way out: Prepare the float program. Where quantizing in two steps is meant, nothing: operators
    that are quantized already are rounded twice unless their specs are the same.
    """


class NothingQuantizedWarning(Pt2qWarning):
    """The model was prepared or converted but nothing in it is quantized.

    Cause: The model has no operator that the backend runs in integers, every statement to the
    quantizer excludes them, or a configuration without fake quantizers was given for training.

    Way out: ``quantizer.report()`` says why each operator stays in float.
    """


class ObserverReplacedWarning(Pt2qWarning):
    """The observer that a configuration names cannot do what is asked; another one stands in.

    Cause: An operator takes its weight with other scales than the configuration asks for, one for
    the whole tensor for instance, and the configuration's own observer has no form that gives them.

    Way out: Enter the observer with its forms as an ``ObserverFamily`` in ``pt2q.observers``, or
    give the operator a configuration of its own with ``set_operator_type``. Where the observer that
    the message names will do, nothing.
    """


class NoDataWarning(Pt2qWarning):
    """A tensor stays in float, because its observer never saw data.

    Cause: ``convert_pt2e(..., on_no_data="warn")``, and calibration never reached the operators
    that the message names.

    Way out: Calibrate with inputs that reach them. Without ``on_no_data`` it is a `NoDataError`.
    """


class SmallestScaleWarning(Pt2qWarning):
    """Values are too small for the smallest scale that their observer may give.

    Cause: The ``eps`` of the observer is larger than what the range of the tensor, or of a channel
    of it, asks for. Its values are rounded to a few integers, or all to zero.

    Way out: Give the observer a smaller ``eps``. A backend's own configuration has the smallest
    that its kernels compute with; there, scale the layer that the message names.
    """


class UnboundedSizeWarning(Pt2qWarning):
    """A deployed program takes sizes up to those of its example, as export bounds none.

    Cause: ExecuTorch plans memory for the largest inputs; ``Dim("batch")``, ``Dim.AUTO`` say none.

    Way out: Bound it: ``Dim("batch", max=64)``. ``pt2q quantize`` takes the data's largest sizes.
    """


class BatchNormNotFoldedWarning(Pt2qWarning):
    """A batch norm stays in the model because folding it would change the function.

    Cause: Its convolution has another reader, its weight is shared or written, it has no
    running statistics, or it follows no convolution or linear layer.

    Way out: Nothing has to be done: the result is right, the batch norm runs in float. To have
    it folded, change what the message names, for instance export the model in evaluation mode.
    """


class ComputesInFloat32Warning(Pt2qWarning):
    """A model in bfloat16 or float16 is deployed to a runtime that computes in float32.

    Cause: The runtime's quantized kernels take and give float32.

    Way out: Nothing has to be done, the result is at least as exact; but what stays unquantized
    takes twice the memory: quantize embeddings and heads too. ``model.float()`` before export
    does the same without the warning.
    """


class ReferenceIncompleteWarning(Pt2qWarning):
    """A quantized operator has no integer form and stays in float.

    Cause: ``convert_pt2e(..., use_reference_representation=True)`` knows no rule for the
    operator, or its rule needs what the model does not give.

    Way out: Write a rule with ``pt2q.passes.reference.reference_rule``, or leave the operator
    unquantized.
    """
