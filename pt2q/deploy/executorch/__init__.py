"""Lower a converted program to an ExecuTorch `.pte` with XNNPACK, save it, run it.

`lower` exports the converted module again, gives what XNNPACK can run to its delegate and packs
the rest with portable kernels. `Program.delegation` says which is which.
"""

from pt2q.deploy.executorch.delegation import Delegation
from pt2q.deploy.executorch.inner_values import InnerValues
from pt2q.deploy.executorch.latency import measure_latency
from pt2q.deploy.executorch.loaded_method import LoadedMethod
from pt2q.deploy.executorch.lowering import Program, lower
from pt2q.deploy.executorch.runtime import LoadedProgram, load

__all__ = [
    "Delegation",
    "InnerValues",
    "LoadedMethod",
    "LoadedProgram",
    "Program",
    "load",
    "lower",
    "measure_latency",
]
