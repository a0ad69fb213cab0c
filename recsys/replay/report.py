"""A replayed stream as numbers: plain JSON values for files, tables, figures and MLflow."""

from __future__ import annotations

from typing import Any

from persona.bootstrap import Interval, bootstrap_mean
from recsys.replay.recovery import LEVELS, covered, windows_until, won_back
from recsys.replay.stream import METRICS, Replay, Served, spent_in_all

REFERENCE = "host"


def report(replay: Replay) -> dict[str, Any]:
    """Everything that was measured.

    Intervals are 95 % percentile bootstrap intervals over users: in a window over its users, over several windows over all of
    their users, each with the mean of their windows.

    Returns:
        scenario, shift, starts, events, users and prototypes of the stream; and ``policies``, for each by name

        * ``windows``: a row each, per metric its value and its change against the host, and what was spent;
        * ``overall``: changes against the host over all windows;
        * ``after_shift``: the same over the windows from the shift on;
        * ``windows_until``: windows until the gain over the host was back at 50 % and 90 % of that before the shift;
        * ``against_parents``: new versions against what they replaced, in the first window of each;
        * ``won_back``: what the shift cost released prototypes, and what refinement won back of it;
        * ``covered``: the same without labels, in the energy of the edits;
        * ``spent``: sums over windows.
    """
    first = next(iter(replay.served.values()))
    return {
        "scenario": replay.config.scenario,
        "shift": replay.config.shift,
        "starts": replay.starts,
        "events": replay.events,
        "users": [len(window.users) for window in first],
        "prototypes": replay.prototypes,
        "policies": {name: _policy(replay, name) for name in replay.served},
    }


def _policy(replay: Replay, name: str) -> dict[str, Any]:
    count, shift = len(replay.starts), replay.config.shift
    gains = {
        m: [a - b for a, b in zip(replay.means(name, m), replay.means(REFERENCE, m), strict=True)] for m in METRICS
    }
    result: dict[str, Any] = {
        "windows": [_window(replay, name, w) for w in range(count)],
        "overall": _changes(replay, name, range(count)),
        "after_shift": _changes(replay, name, range(shift, count)),
        "windows_until": {
            m: {f"{level:.0%}": windows_until(gains[m], shift, level) for level in LEVELS} for m in METRICS
        },
        "spent": dict(spent_in_all(replay.served[name])),
    }
    if name.startswith("refined"):
        parents = {m: replay.against_parents(name, m, range(count)) for m in METRICS}
        won = {m: won_back(replay, name, m) for m in METRICS}
        result["against_parents"] = {m: None if i is None else i.as_dict() for m, i in parents.items()}
        energy = covered(replay, name)
        result["covered"] = None if energy is None else energy.as_dict()
        result["won_back"] = {m: None if w is None else w.as_dict() for m, w in won.items()}
    return result


def _changes(replay: Replay, name: str, windows: range) -> dict[str, Any]:
    return {m: replay.difference(name, REFERENCE, m, windows).as_dict() for m in METRICS}


def _window(replay: Replay, name: str, index: int) -> dict[str, Any]:
    served: Served = replay.served[name][index]
    row: dict[str, Any] = {"window": index, **vars(served.spent), "unexplained": served.unexplained}
    for metric in METRICS:
        row[metric] = _interval(served, metric).as_dict()
        row[f"{metric}_vs_host"] = replay.difference(name, REFERENCE, metric, [index]).as_dict()
        parent = replay.against_parents(name, metric, [index])
        row[f"{metric}_vs_parent"] = None if parent is None else parent.as_dict()
    return row


def _interval(served: Served, metric: str) -> Interval:
    return bootstrap_mean(served.values[metric])
