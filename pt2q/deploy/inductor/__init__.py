"""Compile a converted model with TorchInductor: oneDNN's int8 kernels on x86.

`compile` gives a callable in this process, `package` a file for ahead-of-time use. Both work on a
copy of the converted module, with parameter freezing on while they compile and at no other time,
and with one correction: Inductor fuses ``linear(x) + y`` into a kernel that adds into the memory
of ``y``, which is wrong where ``y`` is the caller's tensor or a parameter. `fusion_report` says
which operators became int8 kernels, and why the others did not.
"""

from pt2q.deploy.inductor.ahead_of_time import LoadedPackage, load_package, package
from pt2q.deploy.inductor.compiled import CompiledModel, compile
from pt2q.deploy.inductor.dry_run import fusion_report
from pt2q.deploy.inductor.fusion import FusionReport, FusionRow

__all__ = [
    "CompiledModel",
    "FusionReport",
    "FusionRow",
    "LoadedPackage",
    "compile",
    "fusion_report",
    "load_package",
    "package",
]
