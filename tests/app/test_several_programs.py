"""`pt2q quantize` of several programs: one command, one file, a method for each."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from support.command_line import Run, fails
from support.seeds import seeded
from torch import Tensor, nn
from torch.nn import functional as F

from pt2q.deploy.executorch import load
from pt2q.numerics.sqnr import sqnr

COUNT, WORDS = 12, 8


class Reader(nn.Module):
    """Remembers what it read, and answers with all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.up, self.head = nn.Embedding(16, 8), nn.Linear(8, 32), nn.Linear(32, 16)
        self.register_buffer("seen", torch.zeros(1, 8))

    seen: Tensor

    def forward(self, words: Tensor) -> Tensor:
        self.seen.copy_(self.seen * 0.5 + self.words(words).mean(1))
        return self.head(F.relu(self.up(self.seen)))


def reader() -> Reader:
    with seeded(0):
        return Reader().eval()


def words(number: int) -> Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randint(16, (1, WORDS + 1), generator=generator)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reader")
    texts = [words(number) for number in range(COUNT)]
    for name, part in (("prefill", slice(WORDS)), ("decode", slice(WORDS, None))):
        with torch.no_grad():
            program = torch.export.export(reader(), (texts[0][:, part],))
        torch.export.save(program, folder / f"{name}.pt2")
        torch.save([text[:, part] for text in texts], folder / f"{name}.pt")
    return folder


def models(saved: Path) -> list[str]:
    return [f"{name}={saved / name}.pt2" for name in ("prefill", "decode")]


def data(saved: Path, *names: str) -> list[str]:
    given = ((f"--calibration={name}={saved / name}.pt") for name in names or ("prefill", "decode"))
    return list(given)


def test_one_file_with_a_method_for_each(run: Run, saved: Path, tmp_path: Path) -> None:
    out, said = tmp_path / "reader.pte", tmp_path / "reader.json"
    code, text, err = run(
        *("quantize", *models(saved), *data(saved), "-o", out, "--json", said, "--report")
    )
    assert (code, err) == (0, "")
    assert re.search(r"methods +│ prefill, decode ", text)
    assert "11 call(s) of prefill, decode, 1 more held out" in text
    assert text.count("aten.linear.default") == 4
    file, exact = load(out), reader()
    assert file.method_names == ("decode", "prefill")
    told = json.loads(said.read_text())
    assert told["held_out_how"] == "the last ones, as the model remembers"
    found = told["methods"]
    last = words(COUNT - 1)
    with torch.no_grad():  # what prefill leaves is there when decode begins
        wanted = {"prefill": exact(last[:, :WORDS]), "decode": exact(last[:, WORDS:])}
    for name, part in (("prefill", last[:, :WORDS]), ("decode", last[:, WORDS:])):
        (ran,) = file.method(name)(part)
        decibels = float(sqnr(wanted[name].flatten(), ran.flatten()))
        assert decibels > 20
        assert found[name]["sqnr"]["file"] == pytest.approx(decibels, abs=0.01)
        assert sum(row["quantized"] for row in found[name]["operators"]) >= 2
    inspected = run("inspect", out)
    assert inspected[::2] == (0, "")
    assert [m in inspected[1] for m in ("prefill", "decode")] == [True, True]
    _compares(run, saved, out)


def _compares(run: Run, saved: Path, out: Path) -> None:
    """Each method with the program that it was made from, which has to be said."""
    given = ("--file", out, "--calibration", saved / "decode.pt")
    assert run("compare", f"decode={saved / 'decode.pt2'}", *given)[::2] == (0, "")
    fails(run("compare", saved / "decode.pt2", *given), 1, r"methods decode, prefill.*decode=MODEL")
    fails(run("compare", f"x={saved / 'decode.pt2'}", *given), 1, r"none is called 'x'")


def test_recipe_and_algorithms(run: Run, saved: Path, tmp_path: Path) -> None:
    recipe, said = tmp_path / "reader.toml", tmp_path / "reader.json"
    recipe.write_text(
        '[default]\nweight_range = [-8, 7]\n[skip]\nmodules = ["head"]\n'
        '[[algorithm]]\nname = "gptq"\n'
    )
    code, text, err = run(
        *("quantize", *models(saved), *data(saved), "-o", tmp_path / "a.pte"),
        *("--recipe", recipe, "--limit", 8, "--json", said),
    )
    assert (code, err) == (0, "")
    assert re.search(r"layers changed by +│ gptq \d ", text)  # one layer, though both read it
    found = json.loads(said.read_text())
    assert (found["calibrated"], found["held_out"]) == (8, 1)
    for method in found["methods"].values():
        rows = {row["module"]: row["quantized"] for row in method["operators"]}
        assert (rows["up"], rows["head"]) == (True, False)


def test_a_program_that_needs_no_data_needs_none(run: Run, saved: Path, tmp_path: Path) -> None:
    given = ("quantize", *models(saved), *data(saved, "prefill"), "-o", tmp_path / "a.pte")
    code, text, _ = run(*given, "--dynamic")
    assert code == 0
    assert "no data for" in text
    assert re.search(r"decode: 2 of \d+ operators", text)
    assert load(tmp_path / "a.pte").method_names == ("decode", "prefill")
    fails(run(*given), 1, "decode has no calibration data.*--calibration decode=FILE")
    fails(run(*given, "--algorithm", "gptq"), 1, "decode has no data to judge that by")


@pytest.mark.parametrize(
    "options, words",
    [
        (["--calibration=decode.pt"], "each is given by the name.*prefill=decode.pt"),
        (["--calibration=other=decode.pt"], "no program is called 'other'; there are prefill, dec"),
        (["--calibration=decode=a.pt", "--calibration=decode=b.pt"], "'decode' is given twice"),
        (["--calibration=decode=a.pt", "--backend=onnxruntime"], "holds one program.*for xnnpack"),
        (["--calibration=decode=a.pt", "--metric=m.py:f"], "--metric judges .* of one program"),
        (["--calibration=decode=no.pt"], "no.pt: no such file"),
    ],
)
def test_mistakes(options: list[str], words: str, run: Run, saved: Path, tmp_path: Path) -> None:
    suffix = ".onnx" if "onnx" in options[-1] else ".pte"
    out = tmp_path / f"a{suffix}"
    fails(run("quantize", *models(saved), *options, "-o", out), 1, words)
    assert not out.exists()


def test_a_name_that_the_file_has_already(run: Run, saved: Path, tmp_path: Path) -> None:
    given = (f"pt2q_provenance={saved / 'decode.pt2'}", "-o", tmp_path / "a.pte", "--dynamic")
    data = f"--calibration=pt2q_provenance={saved / 'decode.pt'}"
    fails(run("quantize", *given, data), 1, "pt2q_provenance is the method that says where")
    assert not (tmp_path / "a.pte").exists()


def test_calls_come_in_equal_numbers(run: Run, saved: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.pt"
    torch.save([words(number)[:, WORDS:] for number in range(5)], few)
    given = [*data(saved, "prefill"), f"--calibration=decode={few}"]
    out = tmp_path / "a.pte"
    result = run("quantize", *models(saved), *given, "-o", out)
    fails(result, 1, "12 of prefill, 5 of decode call.*--limit")
    one = run("quantize", saved / "decode.pt2", *data(saved), "-o", out)
    fails(one, 1, "--calibration is given 2 times, and the model is one program")
    kept = [f"--held-out=decode={few}"]
    fails(run("quantize", *models(saved), *data(saved), *kept, "-o", out), 1, "for the same prog")
    wrong = [*data(saved, "prefill"), f"--calibration=decode={saved / 'bad.pt'}"]
    torch.save([torch.full((1, 1), 99)] * COUNT, saved / "bad.pt")
    fails(run("quantize", *models(saved), *wrong, "-o", out), 1, "a program fails on batch 1: ")


def test_a_program_that_remembers_is_compared_on_the_last_calls(
    run: Run, saved: Path, tmp_path: Path
) -> None:
    """As ``torch.export.export`` gives it: its signature does not say that it writes."""
    said = tmp_path / "a.json"
    given = ("--calibration", saved / "decode.pt", "-o", tmp_path / "a.pte", "--json", said)
    assert run("quantize", saved / "decode.pt2", *given)[0] == 0
    assert json.loads(said.read_text())["held_out_how"].startswith("the last ones")
