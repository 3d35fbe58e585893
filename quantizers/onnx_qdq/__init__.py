"""Runtimes that read ONNX: ONNX Runtime, OpenVINO and TensorRT.

They read the same file differently. ONNX Runtime has an operator in integers, from uint8 to
uint8, for each row of its table: results are quantized too. TensorRT fuses from the inputs on, in
symmetric int8; a residual addition stays in its convolution's kernel if the skip branch alone is
quantized.
"""
