"""Every row of XNNPACK's table, lowered and run by ExecuTorch; dynamic weights in groups too."""

from __future__ import annotations

import pytest
from support.row_programs import Case, cases_of, quantize_programs, training_cases
from support.row_runtimes import Outcome, in_executorch

from pt2q.quantizers import TableQuantizer, WeightQuantizer, XNNPACKQuantizer
from pt2q.quantizers.toolkit.config import Mode

pytest.importorskip("executorch")

INFERENCE = cases_of(XNNPACKQuantizer.table, Mode.STATIC, Mode.DYNAMIC)
TRAINING = training_cases(XNNPACKQuantizer.table)
IN_GROUPS = {
    name: case
    for name, case in cases_of(WeightQuantizer.table, Mode.DYNAMIC).items()
    if case.rule.name == "linear"
}

pytestmark = pytest.mark.filterwarnings("ignore")  # of the lowering


def run(quantizer: TableQuantizer, cases: dict[str, Case]) -> dict[str, Outcome]:
    return in_executorch(quantize_programs(quantizer, list(cases.values())))


@pytest.fixture(scope="module")
def inference() -> dict[str, Outcome]:
    return run(XNNPACKQuantizer(), INFERENCE)


@pytest.fixture(scope="module")
def training() -> dict[str, Outcome]:
    return run(XNNPACKQuantizer(), TRAINING)


@pytest.mark.parametrize("name", INFERENCE)
def test_every_row_runs_in_its_kernel(name: str, inference: dict[str, Outcome]) -> None:
    inference[name].check(most=2, mean=0.05)


@pytest.mark.parametrize("name", TRAINING)
def test_every_row_of_training_runs_in_its_kernel(name: str, training: dict[str, Outcome]) -> None:
    training[name].check(most=2, mean=0.05)


def test_dynamic_linear_layers_with_weights_in_groups_run() -> None:
    for outcome in run(WeightQuantizer(), IN_GROUPS).values():
        outcome.check(most=0.01, mean=0.01)
        assert outcome.kernels == {"XNNFullyConnected"}
