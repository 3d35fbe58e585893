"""Prefill and decode of one decoder in the runtime, beside the program of single tokens."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
from support.two_programs import PROMPT, Step, examples, generate, small_decoder, two_programs
from torch import Tensor

from pt2q import convert_pt2e, prepare_pt2e, sqnr
from pt2q.debug import chunks, perplexity
from pt2q.deploy.executorch import LoadedMethod, lower
from pt2q.errors import ComparisonError
from pt2q.quantizers import (
    ComposableQuantizer,
    EmbeddingQuantizer,
    WeightQuantizer,
    get_dynamic_activation_4bit_weight_config,
)

STEPS = 64


def quantizer() -> ComposableQuantizer:
    weights = WeightQuantizer(get_dynamic_activation_4bit_weight_config(32))
    return ComposableQuantizer([EmbeddingQuantizer(), weights])


def one_output(method: LoadedMethod) -> Step:
    return lambda words, at: method(words, at)[0]


def per_step(expected: Tensor, found: Tensor) -> list[float]:
    return [float(sqnr(a, b)) for a, b in zip(expected, found, strict=True)]


@pytest.mark.slow
def test_64_steps_behind_a_prompt_are_as_close_as_in_a_single_program() -> None:
    """Each step's error is within a decibel of that of the program without prefill."""
    programs = two_programs(small_decoder())
    model = small_decoder()
    expected = generate({"prefill": model, "decode": model}, 9, STEPS)
    both = lower(convert_pt2e(prepare_pt2e(programs, quantizer())), examples()).load()
    run = {name: one_output(both.method(name)) for name in programs}
    found = per_step(expected, generate(run, 9, STEPS))

    single = convert_pt2e(prepare_pt2e(programs["decode"], quantizer()))
    alone = one_output(lower(single, examples()["decode"]).load().method())

    def step_by_step(words: Tensor, at: Tensor) -> Tensor:
        return torch.cat(
            [alone(words[:, i : i + 1], at[i : i + 1]).clone() for i in range(len(at))]
        )

    logits = generate(
        {"prefill": lambda w, at: step_by_step(w, at)[-1:], "decode": alone}, 9, STEPS
    )
    of_single = per_step(expected, logits)
    assert len(found) == STEPS + 1
    assert max(abs(a - b) for a, b in zip(found, of_single, strict=True)) < 1
    assert PROMPT == 32


@pytest.mark.slow
def test_the_example_runs_to_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    """A decoder of transformers with its static cache, in bfloat16, head and table tied."""
    example = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "language_model.py"))
    figures = example["main"]()
    assert figures.generated == 16
    assert abs(figures.quantized / figures.floating - 1) < 0.2
    assert abs(figures.in_runtime / figures.floating - 1) < 0.2
    assert "perplexity" in capsys.readouterr().out


def test_perplexity_of_what_is_known_and_of_guesses() -> None:
    words = torch.tensor([[1, 3, 2, 0, 3]])
    assert perplexity(lambda w: torch.zeros(1, w.shape[1], 4), [words]) == pytest.approx(4)
    known = torch.nn.functional.one_hot(words.roll(-1), 4).float() * 100
    assert perplexity(lambda _: known, [words, words]) == pytest.approx(1)
    with pytest.raises(ComparisonError, match="two tokens"):
        perplexity(lambda w: torch.zeros(1, 1, 4), [words[:, :1]])


def test_chunks_are_whole_and_know_their_places() -> None:
    found = list(chunks(torch.arange(10)[None], 4))
    assert [at.tolist() for _, at in found] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert all(torch.equal(words[0], at) for words, at in found)
