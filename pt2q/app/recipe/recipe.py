"""What a recipe says, as data, and the quantizer that follows from it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pt2q.app.recipe.config import Settings, config_for
from pt2q.app.requirements import Requirements
from pt2q.deploy.backend import Backend
from pt2q.deploy.registry import BACKENDS, DEFAULT
from pt2q.ir import ops
from pt2q.quantizers import TableQuantizer, with_embeddings


@dataclass(frozen=True)
class Override:
    """A part of the model that is treated in another way.

    Attributes:
        kind: ``node``, ``module``, ``module_type`` or ``operator``.
        name: which; a module's name may hold ``*``.
        settings: how it is quantized.
    """

    kind: str
    name: str
    settings: Settings


@dataclass(frozen=True)
class TakenApart:
    """Which operators are taken apart before annotation; None leaves it to the backend.

    Attributes:
        attention, recurrent, max_steps: see `TableQuantizer.set_decompositions`.
    """

    attention: bool | None = None
    recurrent: bool | None = None
    max_steps: int | None = None


@dataclass(frozen=True)
class Recipe:
    """What a recipe file says.

    Attributes:
        backend: a name in `pt2q.deploy.BACKENDS`.
        default: how everything is quantized.
        overrides: what is quantized in another way, or not at all.
        limit: calibrate on at most this many batches; None: all.
        effort: how much is done to win accuracy back, see `pt2q.quantize_pt2e`.
        algorithms: what is done, in order, where no effort says it.
        seed: of random choices.
        require: what the result has to be.
        residual_projections: see `XNNPACKQuantizer`; None leaves it to the backend.
        embeddings: quantize tables of embeddings, too.
        decompositions: which operators are taken apart.
    """

    backend: str = DEFAULT
    default: Settings = field(default_factory=Settings)
    overrides: tuple[Override, ...] = ()
    limit: int | None = None
    effort: str | None = None
    algorithms: tuple[Any, ...] = ()
    seed: int = 0
    require: Requirements = field(default_factory=Requirements)
    residual_projections: str | None = None
    embeddings: bool = False
    decompositions: TakenApart = TakenApart()

    def quantizer(self) -> TableQuantizer:
        """The backend's quantizer with these statements made.

        Raises:
            RecipeError: the backend does not run a mode.
        """
        backend = BACKENDS[self.backend]
        made = self._with_its_settings(backend).set_global(config_for(backend, self.default))
        for override in self.overrides:
            config = config_for(backend, override.settings)
            if override.kind == "node":
                made.set_node_name(override.name, config)
            elif override.kind == "module":
                made.set_module_name(override.name, config)
            elif override.kind == "module_type":
                made.set_module_type(override.name, config)
            else:
                made.set_operator_type(ops.operator_named(override.name), config)
        return made

    def _with_its_settings(self, backend: Backend) -> TableQuantizer:
        made = backend.quantizer().set_decompositions(**asdict(self.decompositions))
        if self.residual_projections is not None:
            assert hasattr(made, "residual_projections")
            made.residual_projections = self.residual_projections
        if self.embeddings:
            assert backend.embeddings is not None
            made = with_embeddings(made, backend.embeddings())
        return made

    def changed(self, *, mode: str | None = None, weight_scales: str | None = None) -> Recipe:
        """A recipe with other defaults; what overrides say for themselves stays.

        Args:
            mode, weight_scales: as in `Settings`; None keeps what is there.
        """
        given = {"mode": mode, "weight_scales": weight_scales}
        kept: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        return replace(self, default=replace(self.default, **kept))
