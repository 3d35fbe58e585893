"""Which runtime a file is compared with its model in: the one that its quantizer was for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pt2q.deploy.onnx.openvino_session import OpenVinoSession
from pt2q.deploy.onnx.session import load
from pt2q.flow import provenance_of
from pt2q.ir.module import QuantGraphModule

OPENVINO = "OpenVINO"
Session = Callable[[Path], Callable[..., Any]]


def judging_runtime(model: object) -> tuple[Session, str]:
    """What opens a file of a model, and what people call it.

    Args:
        model: converted, or float.

    Returns:
        OpenVINO for what was quantized for it, where it is installed; else ONNX Runtime.
    """
    said = provenance_of(model).statements if isinstance(model, QuantGraphModule) else ()
    if runs_in_openvino(said):
        return OpenVinoSession, OPENVINO
    return load, "ONNX Runtime"


def runs_in_openvino(statements: Iterable[str]) -> bool:
    """Whether a quantizer said that it is for OpenVINO, and that is installed.

    Args:
        statements: of its provenance; those of a quantizer inside another are indented.
    """
    said = any(line.strip() == f"for {OPENVINO}" for line in statements)
    return said and find_spec("openvino") is not None
