"""The stream after the cut, replayed: what keeps devices up to date, how well, and at what cost."""

from recsys.replay.policies import Policy, Spent
from recsys.replay.recovery import LEVELS, Covered, WonBack, covered, windows_until, won_back
from recsys.replay.report import report
from recsys.replay.stream import METRICS, POLICIES, Replay, ReplayConfig, Served, replay, spent_in_all
from recsys.replay.windows import Window, boundaries, cut

__all__ = [
    "LEVELS",
    "METRICS",
    "POLICIES",
    "Covered",
    "Policy",
    "Replay",
    "ReplayConfig",
    "Served",
    "Spent",
    "Window",
    "WonBack",
    "boundaries",
    "covered",
    "cut",
    "replay",
    "report",
    "spent_in_all",
    "windows_until",
    "won_back",
]
