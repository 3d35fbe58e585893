"""Write a converted model as ONNX with QuantizeLinear / DequantizeLinear, and run it.

The file is what ONNX Runtime, OpenVINO and TensorRT fuse into their int8 kernels. Weights are
stored in the integers they have. `export` checks and writes the file whole or not at all; `load`
opens it in ONNX Runtime.
"""

from pt2q.deploy.onnx.file_info import OnnxProgramInfo
from pt2q.deploy.onnx.inner_values import InnerValues
from pt2q.deploy.onnx.session import OnnxSession, load
from pt2q.deploy.onnx.writing import export

__all__ = ["InnerValues", "OnnxProgramInfo", "OnnxSession", "export", "load"]
