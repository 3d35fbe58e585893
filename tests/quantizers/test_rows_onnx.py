"""Every row of the tables for ONNX, written and run: ONNX Runtime, OpenVINO, TensorRT's file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.row_programs import (
    Case,
    QuantizedPrograms,
    cases_of,
    quantize_programs,
    training_cases,
)
from support.row_runtimes import Outcome, in_onnxruntime, in_openvino, in_tensorrt_file, write

from pt2q.quantizers import (
    EmbeddingQuantizer,
    OnnxQDQQuantizer,
    TableQuantizer,
    WeightQuantizer,
    get_embedding_quantization_config,
)
from pt2q.quantizers.onnx_qdq.onnxruntime import ONNXRUNTIME
from pt2q.quantizers.onnx_qdq.openvino import OPENVINO
from pt2q.quantizers.onnx_qdq.tensorrt import TENSORRT
from pt2q.quantizers.toolkit.config import Mode

pytest.importorskip("onnxruntime")

UINT8 = cases_of(ONNXRUNTIME, Mode.STATIC, Mode.DYNAMIC)
UINT8_TRAINING = training_cases(ONNXRUNTIME)
SYMMETRIC = cases_of(TENSORRT, Mode.STATIC)
SYMMETRIC_TRAINING = training_cases(TENSORRT)
WEIGHTS = cases_of(WeightQuantizer.table, Mode.STATIC)
EMBEDDINGS = cases_of(EmbeddingQuantizer.table, Mode.STATIC)


class Int8Tables(EmbeddingQuantizer):
    """As ONNX takes them: its zero points are integers."""

    table = replace(
        EmbeddingQuantizer.table, configure=lambda mode: get_embedding_quantization_config()
    )


Written = tuple[QuantizedPrograms, Path]
Folders = pytest.TempPathFactory


def written(quantizer: TableQuantizer, cases: dict[str, Case], folders: Folders) -> Written:
    programs = quantize_programs(quantizer, list(cases.values()))
    return programs, write(programs, folders.mktemp("rows"))


@pytest.fixture(scope="module")
def uint8(tmp_path_factory: Folders) -> Written:
    return written(OnnxQDQQuantizer.onnxruntime(), UINT8, tmp_path_factory)


@pytest.fixture(scope="module")
def uint8_training(tmp_path_factory: Folders) -> Written:
    return written(OnnxQDQQuantizer.onnxruntime(), UINT8_TRAINING, tmp_path_factory)


@pytest.fixture(scope="module")
def onnxruntime(uint8: Written, uint8_training: Written) -> dict[str, Outcome]:
    return {**in_onnxruntime(*uint8), **in_onnxruntime(*uint8_training)}


@pytest.fixture(scope="module")
def openvino(uint8: Written, uint8_training: Written) -> dict[str, Outcome]:
    pytest.importorskip("openvino")
    return {**in_openvino(*uint8), **in_openvino(*uint8_training)}


@pytest.fixture(scope="module")
def tensorrt(tmp_path_factory: Folders) -> dict[str, Outcome]:
    static = written(OnnxQDQQuantizer.tensorrt(), SYMMETRIC, tmp_path_factory)
    training = written(OnnxQDQQuantizer.tensorrt(), SYMMETRIC_TRAINING, tmp_path_factory)
    return {**in_tensorrt_file(*static), **in_tensorrt_file(*training)}


# Steps of the result, on average. Linear layers have integer biases, which moves a value by a
# thousandth of a step; where that turns a rounding, a product carries it to a row of its result.
MEAN = {"matrix product": 0.3}


@pytest.mark.parametrize("name", [*UINT8, *UINT8_TRAINING])
def test_every_row_runs_in_onnx_runtime(name: str, onnxruntime: dict[str, Outcome]) -> None:
    outcome = onnxruntime[name]
    outcome.check(most=2, mean=MEAN.get(outcome.case.rule.name, 0.05))


@pytest.mark.parametrize("name", [*UINT8, *UINT8_TRAINING])
def test_every_row_runs_in_openvino(name: str, openvino: dict[str, Outcome]) -> None:
    outcome = openvino[name]
    rule = next(rule for rule in OPENVINO.rules if rule.name == outcome.case.rule.name)
    # It adds in the convolution's kernel, whose result is not rounded before.
    mean = {**MEAN, "addition": 0.25}.get(rule.name, 0.05)
    replace(outcome, case=replace(outcome.case, rule=rule)).check(most=2, mean=mean)


def test_openvino_has_the_rows_of_onnx_runtime() -> None:
    assert [rule.name for rule in OPENVINO.rules] == [rule.name for rule in ONNXRUNTIME.rules]


@pytest.mark.parametrize("name", [*SYMMETRIC, *SYMMETRIC_TRAINING])
def test_every_row_stands_in_the_file_for_tensorrt(name: str, tensorrt: dict[str, Outcome]) -> None:
    tensorrt[name].check(most=0.01, mean=0.01)


@pytest.mark.parametrize(
    "quantizer, cases",
    [(WeightQuantizer(), WEIGHTS), (Int8Tables(), EMBEDDINGS)],
    ids=["weights", "embeddings"],
)
def test_rows_of_weights_compute_what_the_converted_model_does(
    quantizer: TableQuantizer, cases: dict[str, Case], tmp_path_factory: Folders
) -> None:
    for outcome in in_onnxruntime(*written(quantizer, cases, tmp_path_factory)).values():
        outcome.check(most=0.01, mean=0.01)
