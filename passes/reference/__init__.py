"""Quantized operators as integer arithmetic: the pass, and what a rule of one's own needs."""

from pt2q.ir.qparams import QParams
from pt2q.passes.reference import rules
from pt2q.passes.reference.call import Call
from pt2q.passes.reference.reference_report import ReferenceReport
from pt2q.passes.reference.rewrite import RewriteToReference
from pt2q.passes.reference.rule_table import RULES, reference_rule
from pt2q.passes.reference.values import NoIntegerForm, Quantized, Sum, Term, Value

__all__ = [
    "RULES",
    "Call",
    "NoIntegerForm",
    "QParams",
    "Quantized",
    "ReferenceReport",
    "RewriteToReference",
    "Sum",
    "Term",
    "Value",
    "reference_rule",
    "rules",
]
