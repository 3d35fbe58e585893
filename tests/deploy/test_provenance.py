"""Files of quantized models say where they come from, alike in every run."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pt2q import convert_pt2e, prepare_pt2e, prepare_qat_pt2e, quantize_pt2e
from pt2q.algorithms import BiasCorrection
from pt2q.app.program_file import read_program
from pt2q.deploy import executorch, onnx
from pt2q.deploy.exported import provenance_in, save
from pt2q.deploy.provenance import (
    KEY,
    provenance_lines,
    provenance_of_all,
    provenance_text,
    read_provenance,
)
from pt2q.errors import DataError, FlowError
from pt2q.flow import DataDigest, Provenance
from pt2q.quantizers import (
    ComposableQuantizer,
    EmbeddingQuantizer,
    OnnxQDQQuantizer,
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
)


def exported() -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    return torch.export.export(model, (torch.randn(2, 8),))


def batches() -> list[tuple[Tensor, ...]]:
    made = torch.Generator().manual_seed(0)
    return [(torch.randn(2, 8, generator=made),) for _ in range(4)]


def quantizer() -> XNNPACKQuantizer:
    made = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    return made.set_module_name("2", None).set_operator_type(nn.functional.relu, None)


def test_a_pte_says_it_and_runs_as_ever() -> None:
    converted = quantize_pt2e(exported(), quantizer(), batches(), algorithms=[BiasCorrection()])
    program = executorch.lower(converted, batches()[0])
    loaded = program.load()
    found = loaded.provenance
    assert found is not None and loaded.method_names == ("forward",)
    assert found["quantizer"] == "pt2q.quantizers.xnnpack.quantizer.XNNPACKQuantizer"
    assert found["statements"] == [
        "for XNNPACK",
        "module 2: float",
        "operator type aten.relu.default, aten.relu.out, aten.relu_.default: float",
        "everything else: static, inputs int8 [-128, 127] per tensor, outputs int8 [-128, 127] "
        "per tensor, weights int8 [-127, 127] per channel",
    ]
    assert found["calibration"] == {"batches": 4, "sha256": DataDigest.of(batches()).sha256}
    assert found["algorithms"]["algorithms"][0]["name"] == "bias_correction"
    assert set(found["versions"]) == {"pt2q", "torch", "executorch"}
    plain = copy.deepcopy(converted)
    plain.record.take(Provenance)
    silent = executorch.lower(plain, batches()[0])
    assert silent.load().provenance is None and silent.delegation == program.delegation
    assert torch.equal(silent.load()(*batches()[0])[0], loaded(*batches()[0])[0])


def test_files_are_the_same_in_every_run(tmp_path: Path) -> None:
    made: list[tuple[bytes, bytes]] = []
    for name in ("one.onnx", "two.onnx"):
        torch.rand(3)
        static = quantize_pt2e(exported(), quantizer(), batches())
        affine = quantize_pt2e(exported(), OnnxQDQQuantizer.onnxruntime(), batches())
        onnx.export(affine, batches()[0], tmp_path / name)
        program = executorch.lower(static, batches()[0])
        made.append((program.buffer, (tmp_path / name).read_bytes()))
    assert made[0] == made[1]
    found = onnx.load(tmp_path / "one.onnx").provenance
    assert found is not None
    assert found["statements"][0] == "for ONNX Runtime"
    assert set(found["versions"]) == {"pt2q", "torch", "onnx", "onnxscript"}


def test_what_is_known_without_data_in_one_call() -> None:
    prepared = prepare_qat_pt2e(
        exported(),
        XNNPACKQuantizer(get_symmetric_quantization_config(is_qat=True)),
    )
    prepared(*batches()[0])
    found = json.loads(provenance_text(convert_pt2e(prepared)) or "")
    assert found["trained"] is True and "calibration" not in found and "sqnr" not in found
    composed = prepare_pt2e(exported(), ComposableQuantizer([EmbeddingQuantizer(), quantizer()]))
    composed(*batches()[0])
    said = json.loads(provenance_text(convert_pt2e(composed)) or "")["statements"]
    assert said[0] == "EmbeddingQuantizer" and "  module 2: float" in said


def test_a_float_model_says_nothing() -> None:
    program = executorch.lower(exported()).load()
    assert program.provenance is None and program.algorithms is None
    assert provenance_text(exported().module()) is None
    (row,) = provenance_lines(None)
    assert "says nothing" in row[1]


def test_a_digest_knows_values_types_and_shapes() -> None:
    x = torch.arange(6.0)
    alike = DataDigest.of([(x.view(2, 3),)])
    assert alike == DataDigest.of([{"x": x.clone().view(2, 3)}])
    others: list[Any] = [x, x.view(3, 2), x.view(2, 3).bfloat16(), (x.view(2, 3), 1), -x.view(2, 3)]
    digests = {DataDigest.of([other]).sha256 for other in others}
    assert len(digests | {alike.sha256}) == 6
    assert DataDigest.of([x.view(2, 3).t().contiguous().t()]) == alike
    assert DataDigest.of([(x,), (x,)]).batches == 2


def test_methods_of_one_file_say_what_each_is() -> None:
    static = quantize_pt2e(exported(), quantizer(), batches())
    dynamic = quantize_pt2e(
        exported(), XNNPACKQuantizer(get_symmetric_quantization_config(is_dynamic=True)), batches()
    )
    given = {"one": static, "two": dynamic, "plain": exported()}
    program = executorch.lower(given, {name: batches()[0] for name in given})
    found = program.load().provenance
    assert found is not None and set(found["methods"]) == set(given)
    assert found["methods"]["plain"] == {}
    for name, model in {"one": static, "two": dynamic}.items():
        assert found["methods"][name] == json.loads(provenance_text(model, "executorch") or "")
    rows = [f"{what} {text}" for what, text in provenance_lines(found)]
    assert {f"method {name}" for name in given} < set(rows)
    assert any("dynamic" in row for row in rows) and any("says nothing" in row for row in rows)
    alike = {"one": static, "two": static}
    shared = json.loads(provenance_of_all(alike, "executorch") or "")
    assert shared == json.loads(provenance_text(static, "executorch") or "")
    several = json.loads(provenance_of_all({"one": static, "two": dynamic}) or "")
    assert set(several["methods"]["two"]) == {"statements"}  # all else is the same


def test_a_program_says_it_too(tmp_path: Path) -> None:
    converted = quantize_pt2e(exported(), quantizer(), batches())
    path = tmp_path / "m.pt2"
    path.write_text("old")
    program = save(converted, batches()[0], path)
    assert provenance_in(path) == json.loads(provenance_text(converted) or "")
    loaded = read_program(path)  # without --trust
    assert torch.equal(loaded.module()(*batches()[1]), converted(*batches()[1]))
    torch.export.save(program, path)
    assert provenance_in(path) is None
    with pytest.raises(DataError, match="truncated or damaged"):
        provenance_in(__file__)
    prepared = prepare_pt2e(exported(), quantizer())
    with pytest.raises(FlowError, match="prepared, not converted"):
        save(prepared, batches()[0], path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["{", "[]", "1"])
def test_a_broken_account_is_an_error(text: str) -> None:
    with pytest.raises(DataError, match="account of its provenance is broken"):
        read_provenance({KEY: text})
