"""What XNNPACK's kernels ask of an operator beyond the types of its tensors."""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx import Node

from pt2q.ir.graph import value_of
from pt2q.ir.ops import CONV_TRANSPOSE, argument, has_argument, is_op
from pt2q.quantizers.toolkit import reasons
from pt2q.quantizers.toolkit.reading.tensor_roles import float_activations
from pt2q.quantizers.toolkit.reasons import Reason
from pt2q.quantizers.toolkit.table.products import is_unscaled, multiplies_constant
from pt2q.quantizers.toolkit.table.rule import Match


def matrix_operand(match: Match) -> Reason | None:
    """One factor is a matrix, the other one a constant."""
    source = match.activations
    if len(source) == 1 and _rank(source[0]) == 2:
        return None
    constant = multiplies_constant(match.head)
    return reasons.CONSTANT_FACTOR if constant else reasons.COMPUTED_FACTORS


def unscaled(match: Match) -> Reason | None:
    """The delegate drops the factors of ``addmm``, and two activations it multiplies in float."""
    if not multiplies_constant(match.head):
        return reasons.PRODUCT_IN_FLOAT
    return None if is_unscaled(match.head) else reasons.SCALED_PRODUCT


def several_channels(match: Match) -> Reason | None:
    """Each output channel reads several input channels: others count as depthwise."""
    weight = match.roles.weight
    axis = 0 if is_op(match.head, CONV_TRANSPOSE) else 1
    return reasons.DEPTHWISE if weight is not None and value_of(weight).shape[axis] == 1 else None


def one_group(match: Match) -> Reason | None:
    """A transposed convolution whose input is measured at run time has no groups."""
    return None if argument(match.head, "groups") == 1 else reasons.DYNAMIC_IMAGES_ONLY


def mean_over_image(match: Match) -> Reason | None:
    """The mean is taken over the last two of four dimensions, which stay."""
    node = match.head
    source = float_activations(node)[0]
    dims = argument(node, "dim") if has_argument(node, "dim") else None
    if _rank(source) != 4 or dims is None or sorted(d % 4 for d in dims) != [2, 3]:
        return reasons.MEAN_NOT_OVER_IMAGE
    if not argument(node, "keepdim"):
        return reasons.MEAN_DROPS_DIMENSIONS
    return None if argument(node, "dtype") is None else reasons.MEAN_CHANGES_TYPE


def pools_to_one(match: Match) -> Reason | None:
    """An adaptive pool gives one value per image and channel."""
    source = match.activations[0]
    if _rank(source) != 4 or list(argument(match.head, "output_size")) != [1, 1]:
        return reasons.POOLS_TO_MANY
    return None


def pool_window(match: Match) -> Reason | None:
    """A max pool slides over a batch of images and leaves nothing out."""
    node = match.head
    kernel = _pair(argument(node, "kernel_size"))
    stride = _pair(argument(node, "stride") or kernel)
    if _rank(float_activations(node)[0]) != 4:
        return reasons.NO_BATCH
    if stride[0] > kernel[0] or stride[1] > kernel[1]:
        return reasons.STRIDE_BEYOND_WINDOW
    return None


def adds_zeros(match: Match) -> Reason | None:
    """Zeros are added, which have an integer of their own, and nothing is cut off."""
    node = match.head
    zeros = not has_argument(node, "mode") or argument(node, "mode") == "constant"
    grows = all(isinstance(size, int) and size >= 0 for size in argument(node, "pad"))
    return None if zeros and grows and not argument(node, "value") else reasons.PADS_OTHERWISE


def literal_bounds(match: Match) -> Reason | None:
    """Bounds are numbers."""
    return reasons.TENSOR_BOUNDS if len(match.roles.activations) > 1 else None


def _rank(node: Node) -> int:
    return int(value_of(node).dim())


def _pair(value: Sequence[int] | int) -> tuple[int, int]:
    items = [value] if isinstance(value, int) else value
    return items[0], items[-1]
