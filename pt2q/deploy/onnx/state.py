"""State in a file that has none: what a program writes goes in as inputs and comes out as outputs.

ONNX has no variables. A buffer that the program writes into becomes an input with the name of the
buffer, and an output with that name and ``.next``; a written input comes out as an output, too. The
values that buffers start from stand in the file's metadata, where `OnnxSession` finds them.
"""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Graph, GraphModule, Node

from pt2q.deploy.given_tensors import why_no_memory
from pt2q.deploy.signature import leaf_shape
from pt2q.errors import DataError, InputShapeError
from pt2q.ir.emit import copied, restored
from pt2q.ir.storage.effects import effects_of
from pt2q.ir.torch_private import composites_looked_up_once
from pt2q.library_output import quiet_python

KEY = "pt2q.state"
"""Its name in a file's metadata."""
NEXT = ".next"


@dataclass(frozen=True)
class State:
    """What a file carries from call to call.

    Args:
        initial: the values that buffers start from, by the name of input and buffer.
        written: the names of inputs that the program writes into.
    """

    initial: Mapping[str, np.ndarray] = field(default_factory=dict)
    written: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.initial or self.written)

    def text(self) -> str:
        """All of it as text, to keep in a file."""
        packed = {name: _packed(value) for name, value in self.initial.items()}
        return json.dumps({"initial": packed, "written": self.written})

    @classmethod
    def read(cls, metadata: Mapping[str, str]) -> State:
        """What `text` wrote, from a file's metadata; nothing if it holds none.

        Raises:
            DataError: it cannot be read.
        """
        if KEY not in metadata:
            return cls()
        try:
            found = json.loads(metadata[KEY])
            initial = {name: _unpacked(text) for name, text in found["initial"].items()}
            return cls(initial, tuple(found["written"]))
        except (TypeError, ValueError, KeyError, AttributeError, zlib.error) as error:
            raise DataError(f"the file's account of its state is broken: {error}") from error


class Carrier:
    """Feeds a file in any runtime, and carries its state from call to call.

    Args:
        inputs, outputs: the names that the file has.
        initial: its state.
    """

    def __init__(self, inputs: Sequence[str], outputs: Sequence[str], initial: State) -> None:
        carried = {f"{name}{NEXT}" for name in (*initial.initial, *initial.written)}
        self.initial = initial
        self.results = tuple(outputs)
        self.inputs = tuple(name for name in inputs if name not in initial.initial)
        self.outputs = tuple(name for name in outputs if name not in carried)
        self.state = dict(initial.initial)

    def reset(self) -> None:
        """Go back to the state that the file starts from."""
        self.state = dict(self.initial.initial)

    def feed(self, inputs: Sequence[Tensor]) -> dict[str, np.ndarray]:
        """What to call the file with.

        Raises:
            InputShapeError: the number of inputs is another, or one has no memory to read.
        """
        if len(inputs) != len(self.inputs):
            raise InputShapeError(f"the model takes {len(self.inputs)} input(s), got {len(inputs)}")
        for name, x in zip(self.inputs, inputs, strict=True):
            wrong = why_no_memory(x) if isinstance(x, Tensor) else "has to be a tensor"
            if wrong:
                raise InputShapeError(f"input {name!r} {wrong}")
        given = (_array(x) for x in inputs)
        return {**dict(zip(self.inputs, given, strict=True)), **self.state}

    def take(self, inputs: Sequence[Tensor], results: Sequence[Any]) -> tuple[Tensor, ...]:
        """What a call gave; written inputs are written.

        Args:
            inputs: of the call.
            results: arrays in the order of the file's outputs.
        """
        found = dict(zip(self.results, results, strict=True))
        self.state = {name: found[f"{name}{NEXT}"] for name in self.state}
        for name, x in zip(self.inputs, inputs, strict=True):
            if name in self.initial.written:
                x.detach().copy_(torch.from_numpy(found[f"{name}{NEXT}"]))
        return tuple(torch.from_numpy(found[name]) for name in self.outputs)


def _array(x: Tensor) -> np.ndarray:
    """A tensor as NumPy has it, which has no bfloat16: files take float32 in its place."""
    x = x.detach().contiguous()
    found: np.ndarray = (x.float() if x.dtype is torch.bfloat16 else x).numpy()
    return found


def _packed(value: np.ndarray) -> str:
    stream = io.BytesIO()
    np.save(stream, value, allow_pickle=False)
    return base64.b64encode(zlib.compress(stream.getvalue())).decode()


def _unpacked(text: str) -> np.ndarray:
    data = zlib.decompress(base64.b64decode(text))
    found: np.ndarray = np.load(io.BytesIO(data), allow_pickle=False)
    return found


def without_state(program: ExportedProgram) -> tuple[ExportedProgram, State, tuple[str, ...]]:
    """The same program with its state as inputs and outputs.

    Args:
        program: exported; it stays as it is.

    Returns:
        The program; its state; the names of the outputs that carry it, the last ones. Where nothing
        is written the program is the one that was given.
    """
    if not _writes(program):
        return program, State(), ()
    with quiet_python(), composites_looked_up_once():
        plain = program.run_decompositions({})  # writes become values
    signature = plain.graph_signature
    if not signature.buffers_to_mutate and not signature.user_inputs_to_mutate:
        return program, State(), ()
    flat = _Flat(plain)
    with quiet_python(), torch.no_grad():
        again = torch.export.export(flat.module, flat.examples, dynamic_shapes=flat.shapes)
    values = {name: value.detach().cpu().numpy() for name, value in flat.initial.items()}
    return again, State(values, tuple(signature.user_inputs_to_mutate.values())), flat.results


def _writes(program: ExportedProgram) -> bool:
    """Whether a program writes into anything, if only into what it makes itself."""
    signature = program.graph_signature
    if signature.buffers_to_mutate or signature.user_inputs_to_mutate:
        return True
    graphs = [m.graph for m in program.graph_module.modules() if isinstance(m, GraphModule)]
    return any(effects_of(node).written for graph in graphs for node in graph.nodes)


class _Flat:
    """A functional program as a module of flat inputs and outputs, state last.

    Args:
        program: what ``run_decompositions`` gave.
    """

    def __init__(self, program: ExportedProgram) -> None:
        signature = program.graph_signature
        written = set(signature.buffers_to_mutate.values())
        tensors = {**program.constants, **program.state_dict}
        specs = {spec.arg.name: spec for spec in signature.input_specs}
        given = [n for n in program.graph.nodes if n.op == "placeholder"]
        kinds = {n: specs[n.name].kind for n in given}
        states = [n for n in given if specs[n.name].target in written]
        users = [n for n in given if kinds[n] is InputKind.USER_INPUT]
        self.initial = {str(specs[n.name].target): tensors[specs[n.name].target] for n in states}
        self.graph = Graph()
        root = torch.nn.Module()
        memo: dict[Node, Node] = {}
        for node in (*users, *states):
            memo[node] = copied(node, self.graph, memo.__getitem__)
        for node in given:
            if node not in memo:
                memo[node] = self._constant(root, node, tensors[specs[node.name].target])
        self._copy(program, root, memo)
        self.module = GraphModule(root, self.graph)
        self.results = self._results(program)
        self.shapes = tuple(
            leaf_shape(n.meta["val"], program) if isinstance(n.meta.get("val"), Tensor) else None
            for n in (*users, *states)
        )
        fed = [n.meta.get("val") for n in users]
        self.examples = (*map(_example, fed), *(t.detach() for t in self.initial.values()))

    def _constant(self, root: torch.nn.Module, node: Node, value: Any) -> Node:
        if isinstance(value, Tensor):
            root.register_buffer(node.name, value)
        else:
            setattr(root, node.name, value)
        return restored(self.graph, "get_attr", node.name, (), {}, node.name, dict(node.meta))

    def _copy(
        self, program: ExportedProgram, root: torch.nn.Module, memo: dict[Node, Node]
    ) -> None:
        for node in program.graph.nodes:
            if node in memo:
                continue
            if node.op == "get_attr":  # a body of control flow
                setattr(root, str(node.target), getattr(program.graph_module, str(node.target)))
            memo[node] = copied(node, self.graph, memo.__getitem__)
        output = self.graph.output_node()
        ordered = self._order(program, list(output.args[0]))  # type: ignore[arg-type]
        output.args = (tuple(ordered),)

    @staticmethod
    def _order(program: ExportedProgram, values: list[Any]) -> list[Any]:
        """The user's outputs, then buffers, then written inputs."""
        specs = program.graph_signature.output_specs
        pairs = list(zip(specs, values, strict=True))
        kinds = (OutputKind.USER_OUTPUT, OutputKind.BUFFER_MUTATION, OutputKind.USER_INPUT_MUTATION)
        return [value for kind in kinds for spec, value in pairs if spec.kind is kind]

    @staticmethod
    def _results(program: ExportedProgram) -> tuple[str, ...]:
        specs = program.graph_signature.output_specs
        buffers = [f"{s.target}{NEXT}" for s in specs if s.kind is OutputKind.BUFFER_MUTATION]
        inputs = [f"{s.target}{NEXT}" for s in specs if s.kind is OutputKind.USER_INPUT_MUTATION]
        return (*buffers, *inputs)


def _example(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    sizes = [s if isinstance(s, int) else int(s.node.hint) for s in value.shape]
    return torch.zeros(sizes, dtype=value.dtype)
