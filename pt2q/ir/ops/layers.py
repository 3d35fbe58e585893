"""What multiplies, normalizes and drops: the layers of a network."""

from __future__ import annotations

from typing import Any

from pt2q.ir.ops.names import aten, every

CONV1D = every(aten.conv1d)
CONV2D = every(aten.conv2d)
CONV3D = every(aten.conv3d)
CONV_TRANSPOSE1D = every(aten.conv_transpose1d)
CONV_TRANSPOSE2D = every(aten.conv_transpose2d)
CONV_TRANSPOSE3D = every(aten.conv_transpose3d)
CONV_FORWARD = CONV1D | CONV2D | CONV3D
CONV_TRANSPOSE = CONV_TRANSPOSE1D | CONV_TRANSPOSE2D | CONV_TRANSPOSE3D
CONV_GENERIC = every(aten.convolution)
CONV = CONV_FORWARD | CONV_TRANSPOSE
LINEAR = every(aten.linear)
ADDMM = every(aten.addmm)
MM = every(aten.mm)
BMM = every(aten.bmm)
MATMUL = every(aten.matmul)
BADDBMM = every(aten.baddbmm)
# With an addition: of a bias, or of what was there before.
PRODUCT_ADDED = ADDMM | BADDBMM | every(aten.addbmm, aten.addmv)
# A matrix for each group of rows: the experts of a mixture.
GROUPED_MM = every(aten._grouped_mm)
_GROUPED_MM_OF_OTHERS = frozenset({"transformers.grouped_mm_fallback.default"})
EMBEDDING = every(aten.embedding)
SDPA = every(aten.scaled_dot_product_attention)
LSTM = every(aten.lstm.input)
GRU = every(aten.gru.input)
RNN_TANH = every(aten.rnn_tanh.input)
RNN_RELU = every(aten.rnn_relu.input)
RECURRENT = LSTM | GRU | RNN_TANH | RNN_RELU

BATCH_NORM = every(aten.batch_norm)
# With those that decomposed programs hold: they give batch statistics, too.
BATCH_NORM_ANY = BATCH_NORM | {
    aten._native_batch_norm_legit_no_training.default,
    aten._native_batch_norm_legit_functional.default,
    aten._native_batch_norm_legit.default,
    aten.native_batch_norm.default,
}
LAYER_NORM = every(aten.layer_norm)
RMS_NORM = every(aten.rms_norm)
GROUP_NORM = every(aten.group_norm)
native_batch_norm_backward = aten.native_batch_norm_backward.default

DROPOUT = every(
    aten.dropout,
    aten.dropout_,
    aten.native_dropout,
    aten.feature_dropout,
    aten.feature_dropout_,
    aten.alpha_dropout,
    aten.alpha_dropout_,
    aten.feature_alpha_dropout,
    aten.feature_alpha_dropout_,
)


def known_as(target: Any) -> Any:
    """The operator that rows and reasons know an operator of another library by, or itself.

    Libraries that define operators are never loaded for that: theirs are known by name.

    Args:
        target: of any node.
    """
    named = str(target) in _GROUPED_MM_OF_OTHERS
    return aten._grouped_mm.default if named else target
