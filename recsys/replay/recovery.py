"""After a shift: how long until a policy is as far above the host as before, and what refinement wins back of its cost.

Letters: W windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from persona.bootstrap import Interval
from recsys.replay.stream import Replay

LEVELS = (0.5, 0.9)


def windows_until(gains: Sequence[float], shift: int, level: float) -> int | None:
    """Windows from a shift on until a gain is back at ``level`` of its mean before; 0 if it never fell below.

    Args:
        gains: (W,) above the host.
        shift: the window in which the shift set in.
        level: share of the gain before.

    Returns:
        None if it never comes back, or if there was no gain before that could.
    """
    before = float(np.mean(gains[:shift]))
    if before <= 0:
        return None
    back = [w - shift for w in range(shift, len(gains)) if gains[w] >= level * before]
    return back[0] if back else None


@dataclass(frozen=True)
class WonBack:
    """What a shift cost the released prototypes, as their distance to fresh edits, and what refinement won back.

    Attributes:
        before: edits minus released prototypes before the shift.
        after: the same from the shift on.
        refined: refined minus released prototypes in the windows after that of the shift, the first that can differ by it.
        share: refined / (after - before); None where the shift cost the prototypes nothing.
        of_gap: refined / after, what is won back of all that drift and shift cost.

    Both shares are None where the interval of ``after`` is not above zero: a part of nothing says nothing.
    """

    before: Interval
    after: Interval
    refined: Interval
    share: float | None
    of_gap: float | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def won_back(replay: Replay, policy: str, metric: str) -> WonBack | None:
    """Of a ``refined`` policy; None where no window follows that of the shift."""
    shift, count = replay.config.shift, len(replay.starts)
    if shift + 1 >= count:
        return None
    later = range(shift + 1, count)
    before = replay.difference("edits", "prototypes", metric, range(shift))
    after = replay.difference("edits", "prototypes", metric, later)
    refined = replay.difference(policy, "prototypes", metric, later)
    cost = after.mean - before.mean
    if after.low <= 0:
        return WonBack(before, after, refined, None, None)
    return WonBack(before, after, refined, refined.mean / cost if cost > 0 else None, refined.mean / after.mean)


@dataclass(frozen=True)
class Covered:
    """The same without labels: the share of the energy of the edits that prototypes miss, mean over windows.

    Attributes:
        before: released prototypes before the shift.
        after: released prototypes in the windows after that of the shift.
        refined: refined prototypes in these windows.
        share: (after - refined) / (after - before); None where the shift cost the prototypes nothing.
    """

    before: float
    after: float
    refined: float
    share: float | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def covered(replay: Replay, policy: str) -> Covered | None:
    """Of a ``refined`` policy; None where no window follows that of the shift."""
    shift = replay.config.shift
    if shift + 1 >= len(replay.starts):
        return None
    released, refined = ([w.unexplained or 0.0 for w in replay.served[name]] for name in ("prototypes", policy))
    before, after = float(np.mean(released[:shift])), float(np.mean(released[shift + 1 :]))
    now = float(np.mean(refined[shift + 1 :]))
    return Covered(before, after, now, (after - now) / (after - before) if after > before else None)
