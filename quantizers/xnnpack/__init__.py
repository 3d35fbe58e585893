"""XNNPACK, as ExecuTorch delegates to it: static and dynamic int8."""
