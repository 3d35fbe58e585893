"""Check the laws of the graph on any prepared or converted model.

`verify` looks; `VerifyReport.raise_if_broken` complains. Each law is one function, entered into the
table `LAWS` by `law`: here those that a graph alone can break, in higher rooms those of what they
add to it.
"""

from pt2q.ir.verify import metadata, parameters, runs, structure
from pt2q.ir.verify.laws import LAWS, Law, lasting_laws, law, verify
from pt2q.ir.verify.report import VerifyReport, Violation

__all__ = [
    "LAWS",
    "Law",
    "VerifyReport",
    "Violation",
    "lasting_laws",
    "law",
    "metadata",
    "parameters",
    "runs",
    "structure",
    "verify",
]
