"""The command `persona recsys replay`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from pipelines import console
from pipelines.commands import task
from pipelines.commands.options import MAX_MISSED, ConfigOption, MaxMissed, WorkOption
from pipelines.commands.recsys.options import WORK, with_recsys_settings
from recsys.task import RECSYS

SCENARIO_HELP = "What happens to the log from the shift on: none, interest, new_users, catalogue, popularity."
EPILOG = (
    "Examples:\n\n"
    "persona recsys replay                                          the log as it is\n\n"
    "persona recsys replay --scenario popularity --windows 12 --shift 4\n\n"
    "persona recsys replay --days 7 --min-users 10"
)


def replay(
    given: dict[str, Any],
    work: WorkOption = WORK,
    config: ConfigOption = None,
    scenario: Annotated[str, typer.Option(help=SCENARIO_HELP)] = "none",
    windows: Annotated[int, typer.Option(min=2, help="Windows of about equally many events.")] = 10,
    days: Annotated[float, typer.Option(min=0.0, help="Windows of so many days instead.")] = 0.0,
    shift: Annotated[int, typer.Option(min=1, help="The window in which the scenario sets in, from 0.")] = 3,
    prototypes: Annotated[int, typer.Option(min=0, max=256, help="K of the bank; 0 lets validation choose.")] = 0,
    eta: Annotated[float, typer.Option(help="Share of the way that refinement goes.")] = 0.5,
    min_users: Annotated[int, typer.Option(help="Users of a window without whom a prototype does not move.")] = 5,
    max_missed: MaxMissed = MAX_MISSED,
    as_json: console.JsonOption = False,
) -> None:
    """Replay the events after the cut in time order: who keeps up with the stream, and at what cost."""
    out, space = task.start(RECSYS, as_json), task.workspace(work)
    from persona.prototypes import RefineConfig
    from pipelines.steps import replay as replay_steps
    from recsys.replay import METRICS, POLICIES, ReplayConfig

    settings = space.settings(RECSYS, given, config)
    limits = RefineConfig(eta=eta, min_users=min_users, max_missed=max_missed)
    stream = ReplayConfig(scenario, windows, days, shift, limits)
    with console.progress("policies", len(POLICIES)) as advance:
        seen: set[str] = set()

        def on_window(policy: str, window: int) -> None:
            advance(int(policy not in seen), f"{policy}, window {window}")
            seen.add(policy)

        result = replay_steps.replay(settings, space, stream, prototypes, on_window)
    for metric in METRICS:
        _show_windows(result, metric, out)
    _show_overall(result, METRICS, out)
    _show_refinement(result, METRICS, out)
    out.result(result)


def register(app: typer.Typer) -> None:
    """Add the command to ``persona recsys``."""
    app.command("replay", epilog=EPILOG)(with_recsys_settings(replay))


def _show_windows(result: Mapping[str, Any], metric: str, out: console.Output) -> None:
    rows = [[name, *(row[metric]["mean"] for row in p["windows"])] for name, p in result["policies"].items()]
    windows = [str(index) for index in range(len(result["starts"]))]
    out.table(f"time/{metric} per window, mean over its users", ["policy", *windows], rows)


def _show_overall(result: Mapping[str, Any], metrics: tuple[str, ...], out: console.Output) -> None:
    rows = [
        [
            name,
            *(_interval(policy["overall"][metric]) for metric in metrics),
            *("-" if back is None else str(back) for back in policy["windows_until"][metrics[0]].values()),
            f"{policy['spent']['bytes_sent']:,}",
            f"{policy['spent']['editor_passes']:,}",
            f"{policy['spent']['gradient_steps']:,}",
            f"{policy['spent']['serving_seconds'] + policy['spent']['learning_seconds']:.1f} s",
        ]
        for name, policy in result["policies"].items()
    ]
    until = [f"windows to {level}" for level in result["policies"]["host"]["windows_until"][metrics[0]]]
    costs = ["bytes", "editor passes", "gradient steps", "processor"]
    title = (
        f"All windows against the host [95 %], scenario {result['scenario']} from window {result['shift']} on, "
        f"{result['prototypes']} prototype(s)"
    )
    out.table(title, ["policy", *metrics, *until, *costs], rows)


def _show_refinement(result: Mapping[str, Any], metrics: tuple[str, ...], out: console.Output) -> None:
    rows = []
    for name, policy in result["policies"].items():
        for metric in metrics if policy.get("won_back") else ():
            won = policy["won_back"][metric] or {}
            parents, after = _interval(policy["against_parents"][metric]), _interval(won.get("after"))
            shares = [_percent(won.get("of_gap")), _percent(won.get("share"))]
            rows.append([name, metric, parents, after, _interval(won.get("refined")), *shares])
        energy = policy.get("covered")
        if energy:
            missed = [f"{energy[part]:.2%}" for part in ("after", "refined")]
            of_gap = 1 - energy["refined"] / energy["after"] if energy["after"] else None
            rows.append([name, "edit energy missed", "-", *missed, _percent(of_gap), _percent(energy["share"])])
    columns = ["policy", "metric", "new versions against their parents", "release: gap to fresh edits", "refined"]
    out.table("Refinement, in the windows after the shift", [*columns, "of that gap", "of what the shift added"], rows)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _interval(value: Mapping[str, float] | None) -> str:
    return "-" if value is None else f"{value['mean']:+.4f} [{value['low']:+.4f}, {value['high']:+.4f}]"
