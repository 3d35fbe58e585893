"""Several programs of one model as one program, and apart again."""

from pt2q.ir.joined.joining import JoinedPrograms, join_programs

__all__ = ["JoinedPrograms", "join_programs"]
