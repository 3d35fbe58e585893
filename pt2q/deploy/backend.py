"""What a model can be quantized for: a quantizer, a form to deploy in, and its limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule

from pt2q.deploy.signature import Batch, Signature

if TYPE_CHECKING:
    from pt2q.quantizers import QuantizationConfig, TableQuantizer

ActivationMode = Literal["static", "dynamic", "weights"]
"""When ranges of activations are found; never, where weights alone are quantized."""
WeightScale = Literal["channel", "tensor"]

Model = GraphModule | ExportedProgram
"""What `convert_pt2e` gave, or a float program."""

Run = Callable[[Batch], Sequence[Any]]
"""Runs one batch; gives the outputs, flat."""

Values = Callable[..., Mapping[str, Tensor]]
"""Called with the inputs of one call, gives values by the node of the exported program."""


@dataclass(frozen=True)
class Example:
    """What export needs beside the model.

    Args:
        signature: how the model is called.
        batch: one batch of inputs.
        dynamic_shapes: as for ``torch.export.export``.
    """

    signature: Signature
    batch: Batch
    dynamic_shapes: Any = None

    @property
    def args(self) -> tuple[Any, ...]:
        """The positional inputs."""
        return self.signature.call(self.batch)[0]

    @property
    def kwargs(self) -> dict[str, Any]:
        """The keyword inputs."""
        return self.signature.call(self.batch)[1]


@dataclass(frozen=True)
class Deployed:
    """A model in the form that its backend runs, on disk.

    Args:
        size: bytes of the file.
        run: runs it, in the backend or in a runtime that reads the same file.
        rows: (name, text) for a summary: what runs where.
        warnings: what the user should know, a line each.
        runtime: what `run` computes in, as people call it; "" if the backend's own.
    """

    size: int
    run: Run
    rows: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()
    runtime: str = ""


@dataclass(frozen=True)
class DeployedTogether:
    """Several programs of one model as methods of one file.

    Args:
        size: bytes of the file.
        runs: what runs each method; they share what they remember.
        rows, warnings: as in `Deployed`.
    """

    size: int
    runs: Mapping[str, Run]
    rows: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Backend:
    """What the command line and recipes need to know of a target.

    Args:
        name: what the user says.
        title: what it is, in a few words.
        suffix: of the file to deploy, such as ``.pte``.
        quantizer: makes a quantizer with no statement made.
        config: its configuration for a mode.
        deploy: writes a model to a path. What it needs and may not be installed, it imports.
        deploy_together: writes several programs of one model to one file; None where it cannot.
        modes: those it runs, the default first.
        scales: what its weights may have a scale for.
        holds_code: its files hold compiled code beside the weights.
        runtime: what runs the file, as people call it; "" takes the name.
        bounds_sizes: its files take no size without an upper bound: the data's largest is taken.
        inner_values: gives what shows the values inside the runtime; None where none can be had.
        groups_of: weights that share a scale are a multiple of so many.
        loads: modules that `deploy` needs, to be loaded early where that pays.
        embeddings: the configuration of embedding tables; None where it looks none up in 8 bits.
    """

    name: str
    title: str
    suffix: str
    quantizer: Callable[[], TableQuantizer]
    config: Callable[[ActivationMode], QuantizationConfig]
    deploy: Callable[[Model, Example, Path], Deployed]
    modes: tuple[ActivationMode, ...] = ("static", "dynamic")
    scales: tuple[WeightScale, ...] = ("channel", "tensor")
    holds_code: bool = False
    runtime: str = ""
    bounds_sizes: bool = False
    inner_values: Callable[[Model, Example], Values] | None = None
    groups_of: int = 1
    loads: tuple[str, ...] = ()
    embeddings: Callable[[], QuantizationConfig] | None = None
    deploy_together: (
        Callable[[Mapping[str, Model], Mapping[str, Example], Path], DeployedTogether] | None
    ) = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "runtime", self.runtime or self.name)

    @property
    def default_config(self) -> QuantizationConfig:
        """The configuration of its default mode."""
        return self.config(self.modes[0])
