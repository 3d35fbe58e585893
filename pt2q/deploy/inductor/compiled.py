"""A converted model compiled in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.fx import Graph, GraphModule

from pt2q.deploy.export import require_graph
from pt2q.deploy.inductor.fusion import FusionReport
from pt2q.deploy.inductor.graph import for_inductor, take_input_checks
from pt2q.deploy.inductor.kernels import KernelCall, kernel_calls, report_fusion
from pt2q.deploy.inductor.settings import TorchDynamoException, compile_watched, compiling
from pt2q.errors import FlowError, LoweringError
from pt2q.library_output import first_line


class CompiledModel:
    """A converted model behind TorchInductor, called like the model itself.

    The first call with a new set of input shapes compiles. Calls run without autograd, leave
    their inputs as they are, and change no global setting once they return.
    """

    def __init__(self, model: GraphModule, *, dynamic: bool | None = None) -> None:
        require_graph(model)
        self.source = model
        self.model = for_inductor(model)
        self.calls: tuple[KernelCall, ...] = ()
        self._checks = take_input_checks(self.model)
        self._in_scope = False
        self._out_of_scope = True
        self._run: Callable[..., Any] = torch.compile(
            self.model, backend=self._backend, fullgraph=True, dynamic=dynamic
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model, compiling first if need be.

        Raises:
            InputShapeError: a size that was exported as a constant differs.
            LoweringError: Inductor could not compile the model.
        """
        for check in self._checks:
            check(self.model, args, kwargs)
        if not self._out_of_scope:
            with torch.no_grad():
                try:
                    return self._run(*args, **kwargs)
                except Exception:
                    if not self._out_of_scope:
                        raise
        return self._compile_and_run(args, kwargs)

    def _compile_and_run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        with compiling():
            self._in_scope = True
            try:
                result = self._run(*args, **kwargs)
            except TorchDynamoException as error:
                raise LoweringError(f"Inductor could not compile: {first_line(error)}") from error
            finally:
                self._in_scope = False
        self._out_of_scope = False
        return result

    def _backend(self, graph: GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        """Compile one graph; a call outside the settings comes back through `__call__`."""
        if not self._in_scope:
            self._out_of_scope = True
            raise RuntimeError("this shape is compiled with the settings of pt2q")
        return compile_watched(graph, inputs, self._record)

    def _record(self, graph: Graph) -> None:
        self.calls = kernel_calls(graph)

    @property
    def fusion(self) -> FusionReport:
        """Which quantized operators run as oneDNN int8 kernels in the graph compiled last.

        Raises:
            FlowError: nothing is compiled yet.
        """
        if self._out_of_scope:
            raise FlowError("the model is compiled by its first call: call it, then ask")
        return report_fusion(self.model, self.calls)


def compile(model: GraphModule, *, dynamic: bool | None = None) -> CompiledModel:
    """Compile a converted model with Inductor, its parameters frozen.

    Args:
        model: what `pt2q.convert_pt2e` gave. It is not changed, and neither is any setting of
            torch once a call returns.
        dynamic: as for ``torch.compile``; sizes that were exported as constants stay constant.

    Returns:
        A callable; its first call compiles, which takes from seconds to a minute.

    Raises:
        NotExportedError, FlowError: the model has no graph, or is prepared and not converted.
        LoweringError: the model computes in a type that Inductor has no fast kernel for.
    """
    return CompiledModel(model, dynamic=dynamic)
