"""Calibration by several processes, each on its share of the batches.

The result is that of one process, to the bit, for any number of processes: extremes and counts are
merged exactly; samples of large tensors are taken at places that depend on the batch, not on who
sees it; moving averages are formed afterwards, in the order of the batches; weights are the same
everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from functools import partial
from itertools import chain, islice
from os import PathLike
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pt2q.distributed.checkpoint import Checkpoint, Past, can_tell
from pt2q.distributed.model_digest import digest_of
from pt2q.distributed.ranks import Ranks, together
from pt2q.errors import FlowError, MergeError
from pt2q.ir.data_digest import DataDigest
from pt2q.ir.joined import join_programs
from pt2q.ir.model_state import KeptState
from pt2q.ir.module import QuantGraphModule
from pt2q.ir.module.batch_call import as_call
from pt2q.ir.torch_private import pytree
from pt2q.observers.base.observer_base import ObserverBase
from pt2q.observers.fake_quantizers.fake_quantizer_base import FakeQuantizeBase
from pt2q.observers.protocol import has_data, rounds

# After so many batches each, processes look whether all of them still go on.
_ROUNDS = 4
# A batch, and its place among all of them.
Numbered = tuple[int, Any]


def calibrate(
    prepared: QuantGraphModule | Mapping[str, QuantGraphModule],
    batches: Iterable[Any],
    *,
    call: Callable[[Any], Any] | None = None,
    group: dist.ProcessGroup | None = None,
    resume: str | PathLike[str] | None = None,
) -> None:
    """Show batches to the observers of a prepared module; several processes share them out.

    Every process has to be given the same prepared module and the same batches in the same order;
    with ``torch.distributed`` initialised, process ``r`` of ``n`` runs batches ``r``, ``r + n``,
    and so on. Afterwards all of them have the statistics of all batches: those that one process
    finds, to the bit. Without it this is a loop over the batches.

    Args:
        prepared: what `prepare_pt2e` returned, not calibrated yet; changed in place.
        batches: each a tensor, a tuple or list of arguments or a dict by their names; of several
            programs, a dict by name with such a call of each. Read once. Of a sequence with slices
            this process reads its own share alone.
        call: runs a batch, where it is something else.
        group: the processes; None for all.
        resume: a folder that keeps how far this came; a run that was stopped goes on from there
            and ends with the same statistics. It may be removed afterwards.

    Raises:
        FlowError: the module was calibrated before.
        MergeError: several processes, and what they find cannot be put together.
        DataError: a batch is not a call of the model.
        DistributedError: another process failed, or ``resume`` is of another run.
    """
    if isinstance(prepared, Mapping):
        joined = join_programs(prepared)
        calls = joined.calls(batches) if call is None else batches
        calibrate(joined.module, calls, call=call, group=group, resume=resume)
        return
    ranks = Ranks.of(group)
    observers = observers_of(prepared)
    ranks.agree(refusal(prepared, observers, ranks, resume))
    kept = None if resume is None else Checkpoint(resume, ranks, digest_of(prepared))
    run = call or partial(_run, prepared)
    try:
        with torch.no_grad():
            _observe(observers, batches, run, ranks, kept)
        settle(observers, ranks)
    finally:
        at_batch(observers, None)


def _run(prepared: QuantGraphModule, batch: Any) -> None:
    args, kwargs = as_call(prepared, batch)
    prepared(*args, **kwargs)


def observers_of(model: nn.Module) -> dict[str, Any]:
    """Return what watches tensors in a prepared model, by name, each once.

    Args:
        model: what `prepare_pt2e` returned.
    """
    found = {n: m for n, m in model.named_modules() if hasattr(m, "calculate_qparams")}
    inner = {getattr(module, "activation_post_process", None) for module in found.values()}
    return {name: module for name, module in found.items() if module not in inner}


def refusal(
    prepared: QuantGraphModule,
    observers: dict[str, Any],
    ranks: Ranks,
    resume: str | PathLike[str] | None = None,
) -> Exception | None:
    """Why a module cannot be calibrated, if it cannot.

    Args:
        prepared: the module.
        observers: its own, see `observers_of`.
        ranks: the processes that would do it.
        resume: where what is seen would be kept, if anywhere.
    """
    seen = [name for name, o in observers.items() if _collects(o) and has_data(o)]
    if seen:
        return FlowError(
            f"calibrate: '{seen[0]}' and {len(seen) - 1} other observers have seen data already; "
            "prepare the model anew"
        )
    silent = [name for name, o in observers.items() if _keeps_to_itself(o)]
    if resume is not None and silent:
        return MergeError(
            f"resume: '{silent[0]}' is a {type(observers[silent[0]]).__name__}, which does not say "
            "what it has seen, so a run that was stopped would go on without it; leave resume out"
        )
    if ranks.size == 1:
        return None
    if prepared.record.get(KeptState) is not None:
        return MergeError(
            "calibrate: the program remembers something from batch to batch (it writes into its "
            "buffers), so batches cannot be shared out; calibrate in one process"
        )
    for name, observer in observers.items():
        inner = getattr(observer, "activation_post_process", observer)
        if rounds(observer) or not (can_tell(observer) and isinstance(inner, ObserverBase)):
            return MergeError(
                f"calibrate: '{name}' is a {type(observer).__name__}, which cannot be calibrated "
                "on several processes while it rounds; calibrate in one, switch it off with "
                "disable_fake_quant, or train with DistributedDataParallel and whole_state"
            )
        if not (inner.stateless or inner.merges):
            return inner.no_merge_error()
    return None


def _keeps_to_itself(observer: Any) -> bool:
    """Whether what an observer sees makes a difference to it, and cannot be kept elsewhere."""
    if can_tell(observer):
        return False
    inner = getattr(observer, "activation_post_process", observer)
    if isinstance(inner, ObserverBase):
        return not (inner.stateless or inner.constant_input)
    return not isinstance(inner, FakeQuantizeBase)


def _collects(observer: Any) -> bool:
    return isinstance(observer, ObserverBase) and observer.collects and not observer.constant_input


def _shares(batches: Iterable[Any], ranks: Ranks) -> Iterator[Iterator[Numbered]]:
    """Yield this process's batches, some at a time, until there are none for anybody.

    Each is read when the one before it has been run: who makes them may use its memory again.
    """
    own = _own(batches, ranks)
    if own is not None and isinstance(batches, Sized):
        turns = -(-len(batches) // (ranks.size * _ROUNDS))
        yield from (islice(own, _ROUNDS) for _ in range(turns))
        return
    every = enumerate(batches)
    while (first := next(every, None)) is not None:
        turn = chain([first], islice(every, ranks.size * _ROUNDS - 1))
        yield (pair for pair in turn if pair[0] % ranks.size == ranks.rank)


def _own(batches: Iterable[Any], ranks: Ranks) -> Iterator[Numbered] | None:
    """This process's batches of a sequence that can be read in part; None of anything else."""
    if not isinstance(batches, Sequence):
        return None
    try:
        part = batches[ranks.rank :: ranks.size]
    except TypeError:  # a sequence without slices, such as a deque
        return None
    return zip(range(ranks.rank, len(batches), ranks.size), part, strict=True)


def _observe(
    observers: dict[str, Any],
    batches: Iterable[Any],
    run: Callable[[Any], Any],
    ranks: Ranks,
    kept: Checkpoint | None,
) -> None:
    past = Past() if kept is None else together(ranks, partial(kept.restore, observers))
    turns = enumerate(_shares(batches, ranks))
    digest = DataDigest()

    def go_on() -> bool:
        """Run some of this process's batches, but for those that were run before it was stopped."""
        turn, own = next(turns, (0, None))
        if own is None:
            return False
        before = turn * _ROUNDS
        for place, (index, batch) in enumerate(own, before):
            if kept is not None:
                digest.add(_tensors(batch))
            if place >= past.batches:
                at_batch(observers, index)
                run(batch)
        if kept is not None:
            found = digest.result()
            kept.go_on(observers, past, Past(before + _ROUNDS, found.sha256, found.batches))
        return True

    while together(ranks, go_on):
        pass
    if kept is not None:
        together(ranks, partial(kept.check, past, digest.result().batches))


def _tensors(batch: Any) -> list[Tensor]:
    """What a digest of a batch is of: what else there may be prints differently in every run."""
    return [leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)]


def at_batch(observers: dict[str, Any], index: int | None) -> None:
    """Say to all observers which batch comes next.

    Args:
        observers: by name.
        index: its place among all; None: all that comes is seen here, in order.
    """
    for observer in observers.values():
        if can_tell(observer):
            observer.at_batch(index)


def settle(observers: dict[str, Any], ranks: Ranks) -> None:
    """Give every process the statistics of all batches.

    Args:
        observers: by name; each was told before what it saw which batch it belongs to.
        ranks: the processes.
    """
    merging = {
        name: observer
        for name, observer in observers.items()
        if can_tell(observer) and observer.merges and (ranks.size > 1 or observer.deferred)
    }
    found = ranks.gather({name: o.statistics() for name, o in merging.items()})
    for name, observer in merging.items():
        parts = [one[name] for one in found]
        # Everybody sees the same weights: what one knows is all there is to know. Fake quantizers
        # say of any input that it might be one.
        weight = isinstance(observer, ObserverBase) and observer.constant_input
        observer.merge([_first_with_data(parts)] if weight else parts)


def _first_with_data(parts: list[dict[str, Any]]) -> dict[str, Any]:
    for part in parts:
        low = part.get("min_val")
        if low is not None and low.numel() > 0 and not bool(torch.isinf(low).all()):
            return part
    return parts[0]
