"""What holds for every backend's table, and what a table says of reasons and kernels."""

from __future__ import annotations

import pytest

from pt2q.quantizers import BackendTable, EmbeddingQuantizer, WeightQuantizer
from pt2q.quantizers.onnx_qdq.onnxruntime import ONNXRUNTIME, OPENVINO
from pt2q.quantizers.onnx_qdq.tensorrt import TENSORRT
from pt2q.quantizers.toolkit.config import Mode
from pt2q.quantizers.toolkit.reasons import REASONS
from pt2q.quantizers.x86_inductor.table import X86_INDUCTOR
from pt2q.quantizers.xnnpack.table import XNNPACK

TABLES = {
    table.runtime: table
    for table in (
        XNNPACK,
        X86_INDUCTOR,
        ONNXRUNTIME,
        OPENVINO,
        TENSORRT,
        WeightQuantizer.table,
        EmbeddingQuantizer.table,
    )
}
each_table = pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))


@each_table
def test_every_row_has_a_name_an_example_and_limits(table: BackendTable) -> None:
    names = [rule.name for rule in table.rules]
    assert len(set(names)) == len(names)
    for rule in table.rules:
        assert rule.examples and rule.kernel is not None, rule.name
        assert rule.modes and rule.heads


@each_table
def test_a_table_takes_the_configurations_that_it_makes(table: BackendTable) -> None:
    for mode in Mode:
        if table.of_mode(mode):
            config = table.configure(mode)
            table.check_configuration(config)
            fitted = [rule.kernel for rule in table.of_mode(mode) if rule.kernel is not None]
            assert all(kernel.why_not(kernel.fitted(config)) is None for kernel in fitted)


def test_reasons_have_codes_of_their_own() -> None:
    assert all(code == reason.code for code, reason in REASONS.items())
    assert len({reason.text for reason in REASONS.values()}) == len(REASONS)
    assert all(code == code.lower() and " " not in code for code in REASONS)
