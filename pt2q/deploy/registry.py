"""All backends by name: ours, and those of installed packages.

A package adds one by an entry point of the group ``pt2q.backends`` that names a `Backend`:

    [project.entry-points."pt2q.backends"]
    theirs = "their_package.target:THEIRS"
"""

from __future__ import annotations

from pt2q.deploy.backend import Backend
from pt2q.registry import Registry


def _backend(name: str, found: object) -> Backend:
    if not isinstance(found, Backend):
        raise TypeError(f"expected a pt2q.deploy.Backend, found {type(found).__name__}")
    if found.name != name:
        raise TypeError(f"it calls itself {found.name!r}; both names have to be the same")
    return found


BACKENDS: Registry[Backend] = Registry(
    "backend",
    "pt2q.backends",
    {
        "xnnpack": "pt2q.deploy.executorch.target:XNNPACK",
        "x86": "pt2q.deploy.inductor.target:X86",
        "onnxruntime": "pt2q.deploy.onnx.targets:ONNXRUNTIME",
        "openvino": "pt2q.deploy.onnx.targets:OPENVINO",
        "tensorrt": "pt2q.deploy.onnx.targets:TENSORRT",
    },
    _backend,
)
"""What the command line and recipes choose from."""

DEFAULT = "xnnpack"
