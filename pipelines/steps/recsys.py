"""The steps of the recommendation pipeline: typed config in, typed result out, everything logged to MLflow.

    prepare -> pretrain -> edit -> evaluate -> prototypes -> release -> recommend

The steps around prototypes are in ``bank_steps``.

Each step finds what it needs in the workspace and can be run again alone; what is already there is not trained again. Run
inside ``mlflow run`` or another run, a step joins it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from persona.comparison import compare, metric_name, with_host
from persona.errors import ConfigError
from persona.storage import write_json
from persona.training.objective import FitResult
from persona.training.ranks import current
from pipelines import tracking
from pipelines.steps import cells, processes
from pipelines.steps.evaluate import Comparison
from pipelines.steps.train import TrainedStep, log_epochs, mode_tags
from pipelines.steps.workspace import Workspace
from pipelines.tracking import registry
from pipelines.versions import recsys_snapshots, snapshots
from recsys.config import HOLD_BACK, RecsysConfig
from recsys.data.log.streaming import PreparedLog
from recsys.data.preparing import prepare_log
from recsys.data.sequences import SequenceData
from recsys.methods import METHODS, Problem, Trained, measure, train_configured
from recsys.personalised import Personalised
from recsys.prototypes import served_bank
from recsys.serving.recommender import Recommendation, Recommender

EXPERIMENT = "recsys"
# Metrics that tables and figures show; all are logged.
HEADLINES = {"sampled": ("uauc", "ndcg_10"), "full": ("ndcg_10", "hr_10")}

# Users that MLflow lists with a data set, at most.
LISTED_USERS = 1_000_000

OnEpoch = Callable[[str, dict[str, float]], None]


@dataclass(frozen=True)
class Prepared:
    """What ``prepare`` understood and kept."""

    users: int
    items: int
    events: int
    baskets: bool
    digest: str
    understood: list[str]


def prepare(
    source: str,
    work: Workspace,
    *,
    columns: Mapping[str, Any] | None = None,
    min_events: int = 1,
    baskets: bool | None = None,
) -> Prepared:
    """Read any interaction log and keep it as sequences.

    Args:
        source: a file, a folder of Parquet parts or a pattern of their names, or the name of a data set of a package.
        work: where to.
        columns: explicit names of the columns ``user``, ``item``, ``time``, ``title``, and the ``separator``.
        min_events: leave out users and items with fewer events, counted once.
        baskets: whether events of one user at one time are a set; found out by default.
    """
    tracking.connect(EXPERIMENT)
    with tracking.run("prepare", tags={"step": "prepare"}):
        tracking.log_params({"source": source, "min_events": min_events})
        made = prepare_log(
            source,
            work.prepared,
            columns=columns,
            min_user_events=min_events,
            min_item_events=min_events,
            baskets=baskets,
        )
        users, events = len(made.user_ids), int(made.counts.sum())
        tracking.log_params({"data_digest": made.digest})
        tracking.log_metrics_batch({"users": users, "items": made.items, "events": events})
        tracking.log_json(made.meta, "data/report.json")
        _log_data(made, source)
    understood = [*made.report.lines(), f"baskets {made.meta['baskets']}"]
    return Prepared(users, made.items, events, made.baskets, made.digest, understood)


def pretrain(config: RecsysConfig, work: Workspace, on_epoch: OnEpoch | None = None) -> TrainedStep:
    """Train the host whose adaptive layers will be edited."""

    def train(problem: Problem) -> tuple[str, FitResult]:
        if config.mode in HOLD_BACK:
            problem.early_host()
        else:
            problem.base_host()
        return problem.trainings.results.popitem()

    return _train_step("pretrain", config, work, train, on_epoch)


def edit(config: RecsysConfig, work: Workspace, on_epoch: OnEpoch | None = None) -> TrainedStep:
    """Train the parameter editor in the mode of the settings (and its host, if it is not there yet)."""

    def train(problem: Problem) -> tuple[str, FitResult]:
        mode, trained = train_configured(problem)
        return f"persona_{mode}", trained.result

    return _train_step("edit", config, work, train, on_epoch)


def evaluate(
    config: RecsysConfig,
    work: Workspace,
    *,
    protocols: Sequence[str] = (),
    methods: Sequence[str] = (),
    seeds: int = 1,
    jobs: int = 1,
    notify: cells.Notify = lambda cell, training, metrics: None,
) -> list[Comparison]:
    """Train and test methods on the same rows and negatives, and compare them with the host.

    Args:
        config: settings; ``protocol`` is used unless ``protocols`` are given.
        work: where the data is and the results go.
        protocols: one comparison each.
        methods: all by default; the host is always among them.
        seeds: how many, counting up from the settings' seed.
        jobs: cells worked on at the same time.
        notify: called after each epoch and each method.
    """
    protocols = list(protocols) or [config.protocol]
    chosen = with_host(methods, METHODS)
    todo = cells.cells_of(config, protocols, seeds, chosen, work.prepared, work.cells)
    tracking.connect(EXPERIMENT)
    with tracking.run("evaluate", tags={"step": "evaluate", "protocols": ",".join(protocols)}):
        tracking.log_params({**config.as_dict(), "seeds": seeds, "compared": ",".join(chosen)})
        work.data()  # says what to do where there is none, before any process is started
        measured = cells.measure_cells(todo, jobs, notify)
        comparisons = []
        for protocol in protocols:
            of_protocol = [m for cell, m in zip(todo, measured, strict=True) if cell.config.protocol == protocol]
            headlines = HEADLINES["full" if protocol == "full" else "sampled"]
            found = Comparison.of_seeds(
                of_protocol, protocol=protocol, settings=config.as_dict(), unit="users", headlines=headlines
            )
            write_json(work.comparison(protocol), found.as_dict())
            found.log()
            comparisons.append(found)
    work.remember(config)
    return comparisons


@dataclass(frozen=True)
class Released:
    """A servable bundle and its version in the registry; its editor was trained in ``mode``."""

    bundle: Path
    model: registry.Registered
    mode: str
    host_digest: str
    metrics: dict[str, float] = field(default_factory=dict)
    bank: str = ""
    prototypes: int = 0


def release(config: RecsysConfig, work: Workspace, on_epoch: OnEpoch | None = None, item_table: str = "") -> Released:
    """Pack host, editor and the bank at the head of their lineage; register the bundle and call it the candidate.

    ``item_table`` is how a service keeps the items, as in ``Recommender.compile``.
    """
    tracking.connect(EXPERIMENT)
    with tracking.run("release", tags={"step": "release"}):
        tracking.log_params(config.as_dict())
        data = work.data()
        problem = Problem(data, config, folder=work.cells, on_epoch=on_epoch)
        mode, trained = train_configured(problem)
        method = f"persona_{mode}"
        measured = {name: measure(problem, name) for name in ("host", method)}
        metrics = {metric_name(config.protocol, k): v for k, v in measured[method].summary.items()}
        recommender = _pack(trained, data, config, metrics, work)
        recommender.compile(item_table).save(work.bundle)
        tracking.log_metrics_batch(metrics)
        tags = {
            "host": config.host,
            "preset": config.preset,
            **mode_tags(mode, trained.chosen),
            "protocol": config.protocol,
            "seed": config.seed,
            "host_digest": recommender.host_digest,
            "data_digest": data.digest,
            **tracking.commit_tags(),
            **compare([measured])[1].gains(config.protocol),
        }
        bank = recommender.bank
        version, k = (bank.version, len(bank)) if bank is not None else ("", 0)
        tags |= {"bank_version": version, "k": k}
        snapshots.log(recsys_snapshots.of_release(problem, measured[method], recommender))
        registered = registry.register(work.bundle, recommender, tags, metrics)
    work.remember(config)
    return Released(work.bundle, registered, mode, recommender.host_digest, metrics, version, k)


def _pack(
    trained: Trained, data: SequenceData, config: RecsysConfig, metrics: dict[str, float], work: Workspace
) -> Recommender:
    """The trained model with the vocabulary of its data, and its bank if there is one."""
    assert isinstance(trained.scorer, Personalised)
    info = {"settings": config.as_dict(), "metrics": metrics, "data_digest": data.digest, "parent": None}
    titles = None if data.titles is None else data.titles.to_list()
    bank = served_bank(work.lineage(trained.scorer.host.digest()), trained.scorer)
    return Recommender(trained.scorer, data.item_ids.to_list(), titles, info, bank)


@dataclass(frozen=True)
class Answer:
    """What a user should see, and on which history the answer stands."""

    history: list[str]
    recommendation: Recommendation


def recommend(
    source: str | Path,
    *,
    work: Workspace | None = None,
    user: str | None = None,
    history: Sequence[str] | None = None,
    k: int = 10,
    level: str = "edit",
    drop_last: int = 0,
) -> Answer:
    """Answer "what should this user see now".

    Args:
        source: a bundle folder, or a registered model such as ``models:/persona-recsys@candidate``.
        work: where ``user`` is looked up.
        user: an id of the prepared log, whose history is used; or
        history: item ids, oldest first, of anybody.
        k: how many items.
        level: one of ``persona.wire.LEVELS``.
        drop_last: leave out this many of the latest events, to see what they change.

    Raises:
        ConfigError: neither or both of ``user`` and ``history`` are given.
    """
    if (user is None) == (history is None):
        raise ConfigError("give either a user of the prepared log (--user) or a history of item ids (--history)")
    recommender = load_recommender(source)
    if user is not None:
        if work is None:
            raise ConfigError("a user is looked up in a workspace: give --work, or a --history instead")
        data = work.data()
        history = [data.item_ids[int(i) - 1] for i in data.history_of(user)]
    assert history is not None
    kept = list(history[: max(0, len(history) - drop_last)])
    return Answer(kept, recommender.recommend(kept, k, level=level))


def latest_user(work: Workspace) -> str:
    """The user whose last event is the latest among those with a history worth showing."""
    import numpy as np

    data = work.data()
    last = data.times[data.offsets[1:] - 1]
    enough = np.diff(data.offsets) > min(10, np.diff(data.offsets).max() - 1)
    return str(data.user_ids[int(np.where(enough, last, last.min() - 1).argmax())])


def load_recommender(source: str | Path) -> Recommender:
    """The recommender of a bundle folder or of a registered model's URI."""
    if str(source).startswith(("models:", "runs:")):
        tracking.connect(EXPERIMENT)
        return Recommender.load(registry.download(str(source)))
    return Recommender.load(source)


def _train_step(
    name: str,
    config: RecsysConfig,
    work: Workspace,
    train: Callable[[Problem], tuple[str, FitResult]],
    on_epoch: OnEpoch | None,
) -> TrainedStep:
    if not current().main:  # rank 0 tells what all of them do
        problem = Problem(work.data(), config, folder=work.cells)
        return TrainedStep.of(*train(problem), problem.split.describe())
    store = tracking.connect(EXPERIMENT)
    before = processes.run_before(name, store.experiment_id)
    with tracking.run(name, run_id=before, tags={"step": name, **processes.tags()}):
        tracking.log_params(config.as_dict())
        problem = Problem(work.data(), config, folder=work.cells, on_epoch=on_epoch)
        training, result = train(problem)
        log_epochs(training, result, config.monitor, config.protocol)
    work.remember(config)
    return TrainedStep.of(training, result, problem.split.describe())


def _log_data(made: PreparedLog, source: str) -> None:
    """The data set, as MLflow shows it beside a run: its users, with how much they did."""
    import polars as pl
    from mlflow.data import polars_dataset

    users = pl.DataFrame({"user_id": made.user_ids.head(LISTED_USERS), "events": made.counts[:LISTED_USERS]})
    tracking.log_dataset(polars_dataset.from_polars(users, name=Path(source).stem, digest=made.digest[:32]))
