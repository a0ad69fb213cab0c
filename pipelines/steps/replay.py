"""The step `replay`: the stream after the cut, with nothing trained but what a policy learns on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from persona.comparison import metric_name
from persona.errors import ConfigError
from persona.storage import write_json
from pipelines import tracking
from pipelines.steps.workspace import Workspace
from pipelines.tracking import replay_figures
from recsys.config import RecsysConfig
from recsys.methods import Problem, train_configured
from recsys.personalised import Personalised
from recsys.prototypes import fit_bank
from recsys.replay import METRICS, ReplayConfig, report
from recsys.replay import replay as replay_stream
from recsys.replay.stream import OnWindow
from recsys.task import RECSYS


def replay(
    config: RecsysConfig,
    work: Workspace,
    stream: ReplayConfig,
    prototypes: int = 0,
    on_window: OnWindow = lambda policy, window: None,
) -> dict[str, Any]:
    """Replay the test events of the workspace's data under a scenario; what is not trained yet is trained first.

    Args:
        config: settings; the protocol is ``time``.
        work: where data, host and editor are, and ``replay-<scenario>-seed<s>.json`` goes.
        stream: scenario, windows, limits of refinement.
        prototypes: K of the bank; 0 lets validation choose.
        on_window: called with a policy and the window that it has finished.

    Returns:
        See ``recsys.replay.report``, with the settings.

    Raises:
        ConfigError: another protocol than ``time``.
    """
    if config.protocol != "time":
        raise ConfigError(f"a replay follows time, but the protocol is {config.protocol!r}: give --protocol time")
    work.connect(RECSYS)
    with tracking.run(f"replay {stream.scenario}", tags={"step": "replay", "scenario": stream.scenario}):
        tracking.log_params({**config.as_dict(), "replay": asdict(stream)})
        problem = Problem(work.data(RECSYS), config, folder=work.cells)
        model = train_configured(problem)[1].scorer
        assert isinstance(model, Personalised)
        bank = fit_bank(problem, model, replace(problem.bank_config, k=prototypes)).bank
        found = report(replay_stream(problem, model, bank, stream, on_window))
        result = {"settings": config.as_dict(), "replay": asdict(stream), **found}
        write_json(work.root / f"replay-{stream.scenario}-seed{config.seed}.json", result)
        _log(result)
    work.remember(config)
    return result


def _log(result: Mapping[str, Any]) -> None:
    """Per window as steps, and over all windows at the end."""
    for name, policy in result["policies"].items():
        rows = [
            {
                "epoch": float(row["window"]),
                **{metric_name("time", m): row[m]["mean"] for m in METRICS},
                **{f"{metric_name('time', m)}_vs_host": row[f"{m}_vs_host"]["mean"] for m in METRICS},
                "bytes_sent": float(row["bytes_sent"]),
            }
            for row in policy["windows"]
        ]
        tracking.log_epochs(rows, prefix=f"{name}/")
        overall = {
            f"{name}/overall_{m}_vs_host{suffix}": policy["overall"][m][key]
            for m in METRICS
            for key, suffix in (("mean", ""), ("low", "_low"), ("high", "_high"))
        }
        tracking.log_metrics_batch(overall | {f"{name}/spent_{k}": float(v) for k, v in policy["spent"].items()})
    tracking.log_json(result, f"replay/{result['scenario']}.json")
    tracking.log_figure(replay_figures.stream(result, METRICS), f"figures/replay_{result['scenario']}.png")
