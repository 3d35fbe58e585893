"""What observers share: how they are made, what they are asked for, what they say.

An observer returns its input untouched, the same tensor object, and keeps statistics on the side.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from pt2q.errors import MergeError, NoDataError, NonFiniteActivationError
from pt2q.ir.dtypes import STORED_AS
from pt2q.observers.base.one_at_a_time import OneAtATime
from pt2q.observers.base.plain_attributes import PlainAttributes
from pt2q.observers.protocol import range_has_data
from pt2q.spec.constructor import WithArgs


class ObserverBase(WithArgs, PlainAttributes, ABC):
    """Base of observers: a module that returns its input and says how to quantize it.

    A subclass has ``forward`` and ``calculate_qparams``, and any arguments. What it does not say
    for itself is taken from the spec when it is inserted. It may have ``convert(model, node)``,
    which then writes, once for each call of the observer, what stands in its place in the converted
    graph.

    Args:
        dtype: Type of the quantized values, or float16 / bfloat16 for a mere conversion.
        is_dynamic: The parameters are found at run time; here it is only carried along.
        quant_min, quant_max, qscheme, ch_axis: Kept as they are; None leaves them to the spec.

    Attributes:
        quantizes: Whether conversion writes anything in its place.
        collects: Whether it has to see data before conversion.
        stateless: Whether nothing that passes makes a difference to it.
        node_name: The node whose output is watched, for messages; set by the insertion pass.
        constant_input: The input is a weight: observe it again only when it has changed.
        observer_enabled: Whether calls observe.
    """

    dtype: torch.dtype
    is_dynamic: bool
    quant_min: int | None
    quant_max: int | None
    qscheme: torch.qscheme | None
    ch_axis: int | None
    node_name: str
    constant_input: bool
    observer_enabled: bool
    quantizes: bool = True
    collects: bool = False
    stateless: bool = False

    def __init__(
        self,
        dtype: torch.dtype = torch.int8,
        is_dynamic: bool = False,
        *,
        quant_min: int | None = None,
        quant_max: int | None = None,
        qscheme: torch.qscheme | None = None,
        ch_axis: int | None = None,
    ) -> None:
        super().__init__()
        self.dtype = STORED_AS.get(dtype, dtype)
        self.is_dynamic = is_dynamic
        self.quant_min, self.quant_max = quant_min, quant_max
        self.qscheme, self.ch_axis = qscheme, ch_axis
        self.node_name = ""
        self.constant_input = False
        self.observer_enabled = True
        self._turn = OneAtATime()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Observe; threads that run one model take turns here, and nothing is lost."""
        if torch.compiler.is_compiling():
            return super().__call__(*args, **kwargs)
        with self._turn:
            return super().__call__(*args, **kwargs)

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Observe ``x`` and return it, the same object."""

    @abstractmethod
    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Return ``(scale, zero_point)``, one of each or one for every channel or part.

        Raises:
            NoDataError: nothing was observed.
            NonFiniteActivationError: a NaN was observed.
        """

    def reset(self) -> None:
        """Forget all that was observed."""

    def at_batch(self, index: int | None) -> None:
        """Say that what comes next belongs to a batch, when others may watch other batches.

        Args:
            index: its place among all batches; None: all that comes is seen here, in order.
        """

    def statistics(self) -> dict[str, Any]:
        """Return all that was observed, on the host; `merge` takes it, here or elsewhere."""
        return {name: value.detach().cpu().clone() for name, value in self.state_dict().items()}

    def restore(self, statistics: dict[str, Any]) -> None:
        """Go back to what `statistics` said.

        Args:
            statistics: its result, of this observer or one like it.
        """
        self.load_state_dict({k: v for k, v in statistics.items() if isinstance(v, Tensor)})

    def merge(self, found: Sequence[dict[str, Any]]) -> None:
        """Take, in place of its own, what several observers like this one observed.

        The same as if this one had observed all of it: to the bit, in any order.

        Args:
            found: `statistics()` of each.

        Raises:
            MergeError: it does not know how.
        """
        raise self.no_merge_error()

    @property
    def merges(self) -> bool:
        """Whether it is one that keeps statistics and can `merge` those of several."""
        return type(self).merge is not ObserverBase.merge

    @property
    def deferred(self) -> bool:
        """Whether what was observed of numbered batches counts only once it is merged."""
        return False

    def no_merge_error(self) -> MergeError:
        """What is wrong where it cannot."""
        return MergeError(
            f"{self._where()} statistics of several processes cannot be put together: "
            f"{type(self).__name__} does not say how; give it a method merge(statistics)"
        )

    @property
    def has_data(self) -> bool:
        """Whether at least one value was observed; may synchronise with an accelerator.

        Read off ``min_val`` and ``max_val`` where there are such; else assumed.
        """
        return range_has_data(self)

    @property
    def together_with(self) -> Hashable:
        """What is equal for observers whose parameters are found faster together; None: alone."""
        return None

    @staticmethod
    def calculate_together(observers: Sequence[Any]) -> list[tuple[Tensor, Tensor]]:
        """Return ``calculate_qparams()`` of observers with data, alike in `together_with`."""
        return [observer.calculate_qparams() for observer in observers]

    def bounded(self, low: float, high: float) -> ObserverBase:
        """Return an observer like this one, without data, for values known to lie in bounds.

        Itself, if its parameters never reach beyond the values. Quantizers ask for it where a
        runtime recognises by the grid what it can leave out, such as a relu.
        """
        return self

    def check_data(self) -> None:
        """Raise what `calculate_qparams` raises when there is no usable data."""
        if not self.has_data:
            raise self._no_data_error()

    def _where(self) -> str:
        name = type(self).__name__
        return f"{name} on node '{self.node_name}':" if self.node_name else f"{name}:"

    def _nan_error(self) -> NonFiniteActivationError:
        return NonFiniteActivationError(
            f"{self._where()} the observed tensor holds NaN; check the calibration data and the "
            "float model, which must compute finite numbers"
        )

    def _no_data_error(self) -> NoDataError:
        return NoDataError(
            f"{self._where()} no value was observed; run the prepared model on calibration data "
            "that reaches this node before converting it"
        )
