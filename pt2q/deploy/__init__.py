"""After convert: a folder per target, and all targets by name."""

from pt2q.deploy.backend import Backend, Deployed, Example
from pt2q.deploy.registry import BACKENDS

__all__ = ["BACKENDS", "Backend", "Deployed", "Example"]
