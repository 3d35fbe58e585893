"""Every exception and warning pt2q raises on purpose, by name.

Each message says what was expected, what was found, where, and the way out.
"""

from __future__ import annotations


class Pt2qError(Exception):
    """Base of all errors raised by pt2q."""


class NotExportedError(Pt2qError, TypeError):
    """A module that was never captured with ``torch.export`` was given."""


class SpecError(Pt2qError, ValueError):
    """A quantization spec contradicts itself or its dtype."""


class AnnotationError(Pt2qError, ValueError):
    """An annotation names a node, edge or tensor that cannot be quantized as asked."""


class SharingError(AnnotationError):
    """Sharing references cannot be resolved: a cycle or a dangling reference."""


class FlowError(Pt2qError, RuntimeError):
    """The main calls were made in an order that makes no sense."""


class NoDataError(Pt2qError, RuntimeError):
    """An observer was asked for quantization parameters but never saw data."""


class NonFiniteActivationError(Pt2qError, ValueError):
    """NaN reached an observer."""


class InputShapeError(Pt2qError, ValueError):
    """A prepared or converted model was called with shapes it was not exported for."""


class LoweringError(Pt2qError, RuntimeError):
    """A converted model could not be lowered to, or run by, a runtime."""


class MissingDependencyError(Pt2qError, ImportError):
    """An optional dependency is needed for this call and is not installed."""


class DataError(Pt2qError, ValueError):
    """Calibration data or a model file could not be read or does not fit the model."""


class UnknownNameError(DataError):
    """Nothing of this kind has this name."""


class PluginError(Pt2qError, ImportError):
    """An installed package offers something to pt2q that cannot be used."""


class RecipeError(Pt2qError, ValueError):
    """A recipe file could not be read, or asks for what cannot be."""


class ComparisonError(Pt2qError, ValueError):
    """Two models, or the inputs to compare them on, do not fit each other."""


class GraphLawError(Pt2qError, AssertionError):
    """A pass broke one of the laws of the graph."""


class Pt2qWarning(UserWarning):
    """Base of all warnings given by pt2q."""


class PluginWarning(Pt2qWarning):
    """What an installed package offers to pt2q is left out."""


class UnmatchedRuleWarning(Pt2qWarning):
    """A quantizer rule matched nothing in the model."""


class NothingQuantizedWarning(Pt2qWarning):
    """The model was prepared or converted but nothing in it is quantized."""


class ObserverReplacedWarning(Pt2qWarning):
    """The observer that a configuration names cannot do what is asked; another one stands in."""


class BatchNormNotFoldedWarning(Pt2qWarning):
    """A batch norm stays in the model because folding it would change the function."""


class ReferenceIncompleteWarning(Pt2qWarning):
    """A quantized operator has no integer form and stays in float."""
