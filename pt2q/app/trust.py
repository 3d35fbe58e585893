"""Whether the user trusts model files as programs."""

from __future__ import annotations

from contextvars import ContextVar

TRUSTED: ContextVar[bool] = ContextVar("trusted", default=False)
"""Whether model files are loaded without a look at what they would run."""
