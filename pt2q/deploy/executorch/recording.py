"""What portable kernels compute in a program, by ExecuTorch's own record of a run, an ETDump."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.fx import GraphModule

from pt2q.ir import ops
from pt2q.ir.graph import origin_name
from pt2q.ir.torch_private import pytree
from pt2q.library_output import captured_stderr, quiet_python
from pt2q.optional import optional_modules

OPERATOR = "OPERATOR_CALL"
"""What an ETDump calls a call of a portable kernel."""
ALIGNED = 64
"""Bytes that the record of a value may waste."""


@dataclass(frozen=True)
class Recording:
    """Runs a program with a record of what its instructions compute.

    Args:
        buffer: the bytes of the program.
        size: of a record at most, in bytes; the process ends where there is too little.
        nodes: of the exported program, by the number of the instruction that gives their values.
    """

    buffer: bytes = field(repr=False)
    size: int
    nodes: Mapping[int, str]

    @staticmethod
    def of(buffer: bytes, graph: GraphModule) -> Recording:
        """The recording of a program that was packed.

        Args:
            buffer: its bytes.
            graph: as it was packed, with memory planned.
        """
        specs = pytree.tree_leaves([node.meta.get("spec") for node in graph.graph.nodes])
        sizes = [spec.nbytes() + ALIGNED for spec in specs if hasattr(spec, "nbytes")]
        return Recording(buffer, 2 * sum(sizes) + (1 << 20), _nodes(graph))

    def __call__(self, *inputs: Any) -> dict[str, Tensor]:
        """What portable kernels compute in one run, by node.

        The program is loaded for this one run: a second one with a record ends the process.

        Args:
            inputs: in the order of the exported inputs.
        """
        runtime, devtools = optional_modules(*_MODULES, extra="executorch")
        with tempfile.TemporaryDirectory(prefix="pt2q-values-") as folder:
            log, values = str(Path(folder) / "log"), str(Path(folder) / "values")
            with quiet_python(), captured_stderr():
                program = runtime.Runtime.get().load_program(
                    self.buffer, enable_etdump=True, debug_buffer_size=self.size
                )
                program.load_method("forward").execute(tuple(map(_dense, inputs)))
                program.write_etdump_result_to_file(log, values)
                seen = devtools.Inspector(etdump_path=log, debug_buffer_path=values)
                return dict(self._values(seen.event_blocks[-1].events))

    def _values(self, events: Any) -> Any:
        for event in events:
            node = self.nodes.get(event._instruction_id)
            given = [value for value in event.debug_data if isinstance(value, Tensor)]
            if event.name == OPERATOR and node is not None and given:
                yield node, given[0].clone()


_MODULES = ("executorch.runtime", "executorch.devtools")


def _nodes(graph: GraphModule) -> dict[int, str]:
    """By the number of an instruction that a kernel runs, the node whose value it gives."""
    found = {}
    for node in graph.graph.nodes:
        number = node.meta.get("debug_handle")
        if node.op == "call_function" and node.target is not ops.GETITEM and number is not None:
            found[number] = origin_name(node)
    return found


def _dense(value: Any) -> Any:
    return value.contiguous() if isinstance(value, Tensor) else value
