"""Protocols: which event positions train, adapt, validate and test.

A part of a split is an array of event positions, the targets. The context of a target is what its user did before it (see
``SequenceData.contexts``), whichever part those events belong to: they are the past at that moment. A position without
context is in no part.

========  ==========================================================================================================
protocol  parts
========  ==========================================================================================================
paper     leave-one-out: a user's last event tests, the second-last validates, the earlier ones train; sampled negatives
full      the same split, ranked over the whole catalogue
time      global time: all events after a cut test, nothing is trained after the cut
========  ==========================================================================================================

Leave-one-out speaks of baskets where the data has them (events of one user at one time), and of events, each a basket of its
own, where it has none: the last event of the last basket tests, the last event of the basket before it validates, all events
of the earlier baskets train, and the other events of the two held-out baskets are left out. A user with fewer than three
baskets has no event to spare, and only trains.

Letters: N events, P positions.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persona.errors import ConfigError, DataError, check_known
from recsys.data.sequences import SequenceData

PROTOCOLS = ("paper", "full", "time")

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class TimeCuts:
    """Where protocol ``time`` cuts, as shares of all events in order of time.

    The host trains before ``adapt``; [adapt, validation) is the slice it has not seen, for training that needs one (empty
    where the two are equal); [validation, test) validates; all from ``test`` on tests.

    Raises:
        ConfigError: not 0 < adapt <= validation < test < 1.
    """

    adapt: float = 0.70
    validation: float = 0.82
    test: float = 0.85

    def __post_init__(self) -> None:
        if not 0 < self.adapt <= self.validation < self.test < 1:
            raise ConfigError(
                "time cuts must be shares of the events with 0 < adapt <= validation < test < 1, got "
                f"adapt={self.adapt}, validation={self.validation}, test={self.test}"
            )


@dataclass(frozen=True, eq=False)
class Split:
    """The parts of a protocol: ascending (P,) event positions, no position in two of them.

    Attributes:
        protocol: one of ``PROTOCOLS``.
        train: what the host learns from.
        adapt: what training that needs unseen events learns from; may be empty.
        validation: what early stopping and selection look at.
        test: what is reported, never selected on.
        cut_times: the time at which ``adapt``, ``validation`` and ``test`` begin, where the cuts are global in time.
    """

    protocol: str
    train: Positions
    adapt: Positions
    validation: Positions
    test: Positions
    cut_times: dict[str, int] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """The protocol, the number of positions of each part, and the cut times; JSON values."""
        counts = {name: len(getattr(self, name)) for name in ("train", "adapt", "validation", "test")}
        return {"protocol": self.protocol, **counts, "cut_times": dict(self.cut_times)}


def make_split(data: SequenceData, protocol: str, cuts: TimeCuts | None = None) -> Split:
    """Split ``data`` by ``protocol``.

    Args:
        data: the sequences.
        protocol: ``paper``, ``full`` or ``time``.
        cuts: where ``time`` cuts, its defaults if not given; refused by the other protocols.

    Raises:
        ConfigError: unknown protocol, cuts for a protocol that makes none, or ``time`` on data without time.
        DataError: a part would be empty.
    """
    check_known("protocol", protocol, PROTOCOLS)
    if protocol == "time":
        return _by_time(data, cuts or TimeCuts())
    if cuts is not None:
        raise ConfigError(
            f"protocol {protocol!r} leaves out one event a user and makes no cuts: use 'time', or no cuts"
        )
    return _leave_one_out(data, protocol)


def hold_back(data: SequenceData, split: Split, share: float = 0.2) -> Split:
    """Move the later ``share`` of the training positions into ``adapt``, for training that needs events unseen by the host.

    Under ``time`` the later share in global time; a timestamp stays whole. Under ``paper`` and ``full`` the later share of
    every user's own training positions, rounded to the nearest whole number; a basket that this would divide, and a
    user's first one, stay in ``train``. A split that already has ``adapt`` is returned as it is.

    Raises:
        ConfigError: ``share`` not in (0, 1).
        DataError: nothing can be moved, or nothing would be left.
    """
    if not 0 < share < 1:
        raise ConfigError(f"the share to hold back must lie between 0 and 1, got {share}")
    if len(split.adapt):
        return split
    train, cut_times = split.train, dict(split.cut_times)
    if split.protocol == "time":
        times = data.times[train]
        cut_times["adapt"] = _quantile(times, 1 - share)
        later = times >= cut_times["adapt"]
    else:
        later = _later_share_of_users(data, train, share)
    if not later.any() or later.all():
        raise DataError(
            f"holding back {share:.0%} of {len(train)} training positions leaves nothing on one side of the cut: choose "
            "another share, or a training mode that needs no unseen events"
        )
    return replace(split, train=train[~later], adapt=train[later], cut_times=cut_times)


def _leave_one_out(data: SequenceData, protocol: str) -> Split:
    first, end = data.offsets[:-1], data.offsets[1:]
    present = end > first
    first, test = first[present], end[present] - 1
    # Walk back basket by basket; a walk that passes a user's first event stops there.
    last_basket = data.basket_start[test]
    validation = np.maximum(last_basket - 1, first)
    validation_basket = data.basket_start[validation]
    spare = validation_basket > first
    train_end = np.where(spare, validation_basket, test + 1)

    positions = np.arange(data.n_events)
    trains = positions < np.repeat(train_end, (end - data.offsets[:-1])[present])
    split = Split(
        protocol=protocol,
        train=positions[trains & _has_context(data)],
        adapt=positions[:0],
        validation=validation[spare],
        test=test[spare],
    )
    if not spare.any() or not len(split.train):
        unit = "baskets (events at different times)" if data.baskets else "events"
        raise DataError(
            f"protocol {protocol!r} needs users with at least four {unit}, one each as context and to train, validate and "
            "test, but the data has none: add events, or use protocol 'time'"
        )
    return split


def _by_time(data: SequenceData, cuts: TimeCuts) -> Split:
    if data.ordered_only:
        raise ConfigError(
            "protocol 'time' needs times that all users share, but this log has only an order within each user: use protocol "
            "'paper' or 'full'"
        )
    cut_times = {name: _quantile(data.times, getattr(cuts, name)) for name in ("adapt", "validation", "test")}
    part = np.searchsorted(list(cut_times.values()), data.times, side="right")
    part[~_has_context(data)] = -1
    train, adapt, validation, test = (np.flatnonzero(part == index) for index in range(4))
    split = Split("time", train, adapt, validation, test, cut_times)
    wanted = {"train": True, "adapt": cuts.adapt < cuts.validation, "validation": True, "test": True}
    empty = [name for name, needed in wanted.items() if needed and not len(getattr(split, name))]
    if empty:
        raise DataError(
            f"protocol 'time' finds no event with a past for {' and '.join(empty)} at the cuts {cuts.adapt:g}, "
            f"{cuts.validation:g}, {cuts.test:g}: move the cuts, add events, or use protocol 'paper'"
        )
    return split


def _quantile(times: NDArray[np.int64], share: float) -> int:
    """The time among ``times`` (P,) before which at most ``share`` of them lie."""
    index = int(share * len(times))
    return int(np.partition(times, index)[index])


def _has_context(data: SequenceData) -> NDArray[np.bool_]:
    """(N,) whether the user did anything before the basket of each position."""
    return np.greater(data.basket_start, np.repeat(data.offsets[:-1], np.diff(data.offsets)))


def _later_share_of_users(data: SequenceData, train: Positions, share: float) -> NDArray[np.bool_]:
    """(P,) the last ``share`` of each user's positions among ``train`` (P,), whole baskets only."""
    _, starts, counts = np.unique(data.user_of(train), return_index=True, return_counts=True)
    moved = np.floor(share * counts + 0.5).astype(np.int64)
    rank = np.arange(len(train)) - np.repeat(starts, counts)
    later = rank >= np.repeat(counts - moved, counts)
    # The last position that stays keeps the rest of its basket.
    kept = np.repeat(np.maximum(counts - moved - 1, 0) + starts, counts)
    return np.asarray(later & (data.basket_start[train] != data.basket_start[train[kept]]))
