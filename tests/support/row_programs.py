"""The examples of a table's rows: one model of many programs, quantized together.

Programs share nothing, so each is looked at by itself: its operators by the name of its module, its
kernels by what leads to its output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pt2q import QuantGraphModule, convert_pt2e, prepare_pt2e, prepare_qat_pt2e
from pt2q.quantizers import BackendTable, Report, Rule, TableQuantizer
from pt2q.quantizers.toolkit.config import Mode
from pt2q.quantizers.toolkit.table.examples import Example


@dataclass(frozen=True)
class Case:
    """One example of one row."""

    rule: Rule
    example: Example
    mode: Mode

    @property
    def name(self) -> str:
        return f"{self.rule.name} {self.rule.examples.index(self.example)}"


def cases_of(table: BackendTable, *modes: Mode) -> dict[str, Case]:
    """The examples of the rows that hold in some modes, each in the first of these."""
    found = [
        Case(rule, example, next(mode for mode in modes if mode in rule.modes))
        for rule in table.rules
        if rule.modes & frozenset(modes)
        for example in rule.examples
    ]
    return {case.name: case for case in found}


def training_cases(table: BackendTable) -> dict[str, Case]:
    """The examples of the rows that hold in training alone."""
    cases = cases_of(table, Mode.QAT)
    return {name: case for name, case in cases.items() if case.rule.modes == {Mode.QAT}}


class Programs(nn.Module):
    """Each program on its own inputs; gives all results."""

    def __init__(self, examples: Sequence[Example]) -> None:
        super().__init__()
        self.programs = nn.ModuleList(example.module() for example in examples)
        self.takes = [len(example.shapes) for example in examples]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        rest, results = list(inputs), []
        for program, count in zip(self.programs, self.takes, strict=True):
            results.append(program(*rest[:count]))
            del rest[:count]
        return tuple(results)


@dataclass(frozen=True)
class QuantizedPrograms:
    cases: tuple[Case, ...]
    converted: QuantGraphModule
    inputs: tuple[Tensor, ...]
    report: Report
    results: tuple[Tensor, ...]

    def index_of(self, path: str) -> int | None:
        """The program that a module belongs to."""
        parts = path.split(".")
        return int(parts[1]) if parts[0] == "programs" else None

    def rules_at(self, index: int) -> set[str]:
        """The rows that quantized something in a program."""
        rows = self.report.quantized
        return {row.rule for row in rows if self.index_of(row.module) == index}


def quantize_programs(quantizer: TableQuantizer, cases: Sequence[Case]) -> QuantizedPrograms:
    """Quantize the programs of some cases, each by the table's configuration of its mode."""
    torch.manual_seed(0)
    training = cases[0].mode is Mode.QAT
    model = Programs([case.example for case in cases]).train(training)
    inputs = tuple(x for case in cases for x in case.example.inputs())
    table = quantizer.table
    quantizer.set_global(table.configure(cases[0].mode))
    for index, case in enumerate(cases):
        config = table.configure(case.mode)
        if case.mode is not cases[0].mode:
            quantizer.set_module_name(f"programs.{index}", config)
        if case.example.asked_for is not None:
            quantizer.set_operator_type(case.example.asked_for, config)
    prepare = prepare_qat_pt2e if training else prepare_pt2e
    prepared = prepare(torch.export.export(model, inputs), quantizer)
    with torch.no_grad():
        prepared(*inputs)
        converted = convert_pt2e(prepared)
        results = converted(*inputs)
    return QuantizedPrograms(tuple(cases), converted, inputs, quantizer.report(), results)
