"""Every row of Inductor's table: fused, and (in the slow tier) compiled and run."""

from __future__ import annotations

import pytest
from support.row_programs import Case, cases_of, quantize_programs, training_cases
from support.row_runtimes import Outcome, fused_by_inductor, in_inductor

from pt2q.quantizers import X86InductorQuantizer
from pt2q.quantizers.toolkit.config import Mode

INFERENCE = cases_of(X86InductorQuantizer.table, Mode.STATIC, Mode.DYNAMIC)
TRAINING = training_cases(X86InductorQuantizer.table)


@pytest.fixture(scope="module")
def fused() -> dict[str, Outcome]:
    return fused_by_inductor(quantize_programs(X86InductorQuantizer(), list(INFERENCE.values())))


def compiled(cases: dict[str, Case]) -> dict[str, Outcome]:
    return in_inductor(quantize_programs(X86InductorQuantizer(), list(cases.values())))


@pytest.mark.parametrize("name", INFERENCE)
def test_every_row_is_fused_into_its_kernel(name: str, fused: dict[str, Outcome]) -> None:
    fused[name].check(most=0, mean=0)


def test_rows_of_training_compute_what_the_converted_model_does() -> None:
    for outcome in compiled(TRAINING).values():
        outcome.check(most=0.01, mean=0.01)


@pytest.mark.slow
def test_every_row_computes_what_the_converted_model_does() -> None:
    for outcome in compiled(INFERENCE).values():
        outcome.check(most=0.01, mean=0.01)
