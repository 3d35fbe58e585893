"""The values inside a program that ExecuTorch computes, in its delegate and around it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule

from pt2q.deploy.executorch.lowering import packed
from pt2q.deploy.executorch.recording import Recording
from pt2q.deploy.executorch.showing import showing
from pt2q.deploy.export import require_graph
from pt2q.errors import LoweringError


class InnerValues:
    """Lowers a model so that it shows the values inside, and runs it.

    The XNNPACK delegate shows nothing but what it gives. So the values that are rounded, which its
    kernels store, are made outputs of the program; all is fused as ever, and the outputs are those
    of the plain program. What portable kernels compute is read from ExecuTorch's own record, an
    ETDump. Bodies of control flow are not looked into.

    Args:
        converted: what `convert_pt2e` gave, or a float model: then only portable kernels show.
        args, kwargs, dynamic_shapes: as for `lower`.

    Raises:
        NotExportedError: the model was not captured with ``torch.export``.
        FlowError: it is prepared, not converted.
        LoweringError: it cannot be lowered, or carries state from call to call.
        MissingDependencyError: executorch is not installed.
    """

    def __init__(
        self,
        converted: GraphModule | ExportedProgram,
        args: tuple[Any, ...] = (),
        *,
        kwargs: Mapping[str, Any] | None = None,
        dynamic_shapes: Any = None,
    ) -> None:
        require_graph(converted)
        model: Any = converted
        if isinstance(converted, ExportedProgram):
            model = converted.module(check_guards=False)
        shown, self._names = showing(model)
        program, manager = packed(shown, args, kwargs=kwargs, dynamic_shapes=dynamic_shapes)
        lowered = manager.exported_program()
        if lowered.graph_signature.buffers_to_mutate:
            raise LoweringError("the model carries state from call to call and is not looked into")
        self.delegation = program.delegation
        self._program = program.load()
        self._recording = Recording.of(program.buffer, lowered.graph_module)

    def __call__(self, *inputs: Any) -> dict[str, Tensor]:
        """The values of one run, by the names of the nodes of the exported program.

        Args:
            inputs: in the order of the exported inputs.
        """
        results = self._program(*inputs)
        shown = results[len(results) - len(self._names) :]
        found = self._recording(*inputs) if self.delegation.portable else {}
        return found | dict(zip(self._names, shown, strict=True))
