"""Why values of two models cannot be compared, in the form that quantizers give reasons in."""

from __future__ import annotations

from pt2q.quantizers.toolkit.reasons import Reason

OTHER_NUMBER = Reason(
    "other-number-of-values", "it gives {float} value(s) in float and {quantized} quantized"
)
TENSOR_IN_ONE = Reason("tensor-in-one", "it gives a tensor in one model and none in the other")
OTHER_SHAPE = Reason("other-shape", "its shape is {float} in float, {quantized} quantized")
OTHER_KIND = Reason(
    "other-kind", "it is {float} in float and {quantized} quantized, of unknown meaning"
)
ONLY_FLOAT = Reason("only-float", "the quantized model has no such value")
WITH_READERS = Reason("with-readers", f"{ONLY_FLOAT}; it counts with its readers {{readers}}")
ONLY_QUANTIZED = Reason("only-quantized", "the float model has no such value")
NO_FLOAT_CONSTANT = Reason(
    "no-float-constant", "{constant}: the float model has no constant of its name and shape"
)
