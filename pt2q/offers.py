"""What there is by name, without loading any of it: what help texts say.

The names of packages that add to these come from their entry points, see `pt2q.registry`.
"""

from __future__ import annotations

BACKENDS = {
    "xnnpack": "pt2q.deploy.executorch.target:XNNPACK",
    "x86": "pt2q.deploy.inductor.target:X86",
    "onnxruntime": "pt2q.deploy.onnx.targets:ONNXRUNTIME",
    "openvino": "pt2q.deploy.onnx.targets:OPENVINO",
    "tensorrt": "pt2q.deploy.onnx.targets:TENSORRT",
}
"""Where each of our backends is."""

BACKEND_GROUP = "pt2q.backends"
"""Of entry points."""

DEFAULT_BACKEND = "xnnpack"

ALGORITHMS = (
    "equalization",
    "smooth_quant",
    "awq",
    "scale_search",
    "gptq",
    "adaround",
    "batch_norm",
    "bias_correction",
)
"""The names of algorithms, in the order in which they are best applied."""

EFFORTS = ("fast", "balanced", "best")
"""How much is done to win accuracy back."""
