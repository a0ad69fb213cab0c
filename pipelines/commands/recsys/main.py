"""The commands `persona recsys ...`: options in, a step of ``recsys_steps``, tables or JSON out."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines import console
from pipelines.commands import bars
from pipelines.commands.options import split, with_settings
from pipelines.commands.recsys import show

if TYPE_CHECKING:
    from pipelines.commands.bars import OnEpoch
    from pipelines.steps.evaluate import Comparison
    from pipelines.steps.workspace import Workspace
    from recsys.config import RecsysConfig

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")

DATA_HELP = "A CSV, TSV, .inter or Parquet file, a folder of Parquet parts, or movielens-small, ml-100k."
WORK_HELP = "Folder that the steps share: data, checkpoints, results, bundle."

WorkOption = Annotated[Path, typer.Option("--work", help=WORK_HELP)]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="TOML file with any of the settings.")]
DataOption = Annotated[str, typer.Option("--data", help=DATA_HELP)]
UserColumn = Annotated[str | None, typer.Option("--user-column", help="Column of user ids, if its name does not tell.")]
ItemColumn = Annotated[str | None, typer.Option("--item-column", help="Column of item ids.")]
TimeColumn = Annotated[str | None, typer.Option("--time-column", help="Column of times or positions.")]
TitleColumn = Annotated[str | None, typer.Option("--title-column", help="Column of item titles.")]
Baskets = Annotated[
    bool | None,
    typer.Option("--baskets/--no-baskets", help="Events of a user at one time are a set; found out by default."),
]
MinEvents = Annotated[int, typer.Option(min=1, help="Leave out users and items with fewer events, counted once.")]
Seeds = Annotated[int, typer.Option(min=1, help="How many seeds, counting up from --seed.")]
Jobs = Annotated[int, typer.Option(min=1, help="Cells (protocol and seed) worked on at the same time.")]
Methods = Annotated[
    str, typer.Option(help="Comma-separated methods; all by default. The host and simple rivals are always among them.")
]
Protocols = Annotated[str, typer.Option(help="Comma-separated protocols to evaluate under; the first one is released.")]

LevelOption = Annotated[
    str,
    typer.Option(
        help="edit: the whole edit; basis: prototype and remaining edit in 64 bytes; prototype: one byte; host: the same "
        "model for everybody."
    ),
]

WORK = Path("work")


@app.callback(
    epilog="Examples:\n\n"
    "persona recsys run --data movielens-small                 everything, on real data\n\n"
    "persona recsys run --data events.csv --protocol time      your own log\n\n"
    "persona recsys recommend --user 42 --k 5                  what should this user see now"
)
def recsys() -> None:
    """Personalised recommendation: from an interaction log to a registered model that answers."""


@app.command(epilog="Example:  persona recsys prepare --data events.csv --user-column customer")
def prepare(
    data: DataOption,
    work: WorkOption = WORK,
    user_column: UserColumn = None,
    item_column: ItemColumn = None,
    time_column: TimeColumn = None,
    title_column: TitleColumn = None,
    min_events: MinEvents = 1,
    baskets: Baskets = None,
    as_json: console.JsonOption = False,
) -> None:
    """Read an interaction log of any form, say what was understood, and keep it as sequences."""
    steps, out = start(as_json)
    columns = {"user": user_column, "item": item_column, "time": time_column, "title": title_column}
    result = steps.prepare(data, workspace(work), columns=columns, min_events=min_events, baskets=baskets)
    for line in result.understood:
        out.say(line)
    out.result(result)


@app.command(epilog="Example:  persona recsys pretrain --host gru4rec --protocol paper")
@with_settings
def pretrain(
    given: dict[str, Any], work: WorkOption = WORK, config: ConfigOption = None, as_json: console.JsonOption = False
) -> None:
    """Train the host: shared and adaptive layers, the same for everybody."""
    _train("pretrain", given, work, config, as_json)


@app.command(epilog="Example:  persona recsys edit --transfer recurrent --bound frobenius")
@with_settings
def edit(
    given: dict[str, Any], work: WorkOption = WORK, config: ConfigOption = None, as_json: console.JsonOption = False
) -> None:
    """Train the parameter editor for the host."""
    _train("edit", given, work, config, as_json)


@app.command(epilog="Example:  persona recsys evaluate --seeds 3 --methods host,finetune_all,persona_held_back")
@with_settings
def evaluate(
    given: dict[str, Any],
    work: WorkOption = WORK,
    config: ConfigOption = None,
    methods: Methods = "",
    protocols: Annotated[str, typer.Option(help="Comma-separated protocols; --protocol by default.")] = "",
    seeds: Seeds = 1,
    jobs: Jobs = 1,
    against: Annotated[str, typer.Option(help="A method to show the differences to, beside those to the host.")] = "",
    as_json: console.JsonOption = False,
) -> None:
    """Compare methods with the host on the same rows and negatives, with intervals over users."""
    _, out = start(as_json)
    space = workspace(work)
    settings = space.settings(given, config)
    chosen = _with(split(methods), against)
    comparisons = _evaluate(space, settings, split(protocols) or [settings.protocol], chosen, seeds, jobs)
    values = []
    for comparison in comparisons:
        show.comparison(comparison, out)
        values.append(comparison.as_dict())
        if against:
            show.against(comparison, against, out)
            values[-1]["against"] = {against: [row.as_dict() for row in comparison.against(against)]}
    out.result(values)


@app.command(epilog="Example:  persona recsys release --work work")
@with_settings
def release(
    given: dict[str, Any],
    work: WorkOption = WORK,
    config: ConfigOption = None,
    item_table: Annotated[
        str, typer.Option(help="How the service keeps items: float32, int8, int4; chosen by their number by default.")
    ] = "",
    as_json: console.JsonOption = False,
) -> None:
    """Pack host, editor and prototypes into a bundle, register it in MLflow, and call it the candidate."""
    steps, out = start(as_json)
    space = workspace(work)
    settings = space.settings(given, config)
    with epochs(settings) as on_epoch:
        released = steps.release(settings, space, on_epoch, item_table)
    show.released(released, out)
    out.result(released)


@app.command(
    epilog="Examples:\n\n"
    "persona recsys recommend --user 42 --k 5\n\n"
    "persona recsys recommend --user 42 --drop-last 5          before the last five events\n\n"
    "persona recsys recommend --history 1193,661,914 --model models:/persona-recsys@candidate"
)
def recommend(
    work: WorkOption = WORK,
    user: Annotated[str | None, typer.Option(help="A user of the prepared log.")] = None,
    history: Annotated[str | None, typer.Option(help="Comma-separated item ids, oldest first.")] = None,
    model: Annotated[str, typer.Option(help="A bundle folder or a registered model; the workspace's by default.")] = "",
    k: Annotated[int, typer.Option(min=1, help="How many items.")] = 10,
    level: LevelOption = "edit",
    drop_last: Annotated[int, typer.Option(min=0, help="Leave out this many of the latest events.")] = 0,
    as_json: console.JsonOption = False,
) -> None:
    """Answer: what should this user see now."""
    steps, out = start(as_json)
    space = workspace(work)
    answer = steps.recommend(
        model or space.bundle,
        work=space,
        user=user,
        history=None if history is None else split(history),
        k=k,
        level=level,
        drop_last=drop_last,
    )
    show.answered(answer, out)
    out.result(answer)


@app.command(epilog="Example:  persona recsys run --data movielens-small --protocols time,paper --jobs 2")
@with_settings
def run(
    given: dict[str, Any],
    data: DataOption,
    work: WorkOption = WORK,
    config: ConfigOption = None,
    protocols: Protocols = "",
    methods: Methods = "",
    seeds: Seeds = 1,
    jobs: Jobs = 1,
    user: Annotated[
        str | None, typer.Option(help="Whom to recommend to in the end; the user active last by default.")
    ] = None,
    user_column: UserColumn = None,
    item_column: ItemColumn = None,
    time_column: TimeColumn = None,
    title_column: TitleColumn = None,
    min_events: MinEvents = 1,
    baskets: Baskets = None,
    as_json: console.JsonOption = False,
) -> None:
    """The whole way, as nested MLflow runs: prepare, evaluate (trains host, editor, baselines), prototypes, release.

    In the end it recommends to one user, before and after their last five events.
    """
    from pipelines import tracking
    from pipelines.commands.recsys import prototypes as bank_cli
    from pipelines.steps.workspace import under_protocol
    from recsys.prototypes import BankConfig

    steps, out = start(as_json)
    space = workspace(work)
    settings = space.settings(given, config)
    show.taken_over(space, given, config, out)
    chosen = split(protocols) or [settings.protocol]
    columns = {"user": user_column, "item": item_column, "time": time_column, "title": title_column}
    tracking.connect(steps.EXPERIMENT)
    with tracking.run("recsys", tags={"step": "run"}) as active:
        tracking.log_params({"source": data, **settings.as_dict()})
        prepared = steps.prepare(data, space, columns=columns, min_events=min_events, baskets=baskets)
        for line in prepared.understood:
            out.say(line)
        comparisons = _evaluate(space, settings, chosen, split(methods), seeds, jobs)
        for comparison in comparisons:
            show.comparison(comparison, out)
        kept = under_protocol(settings, chosen[0])
        banks = bank_cli.fit(space, kept, BankConfig())
        bank_cli.show_bank(banks, out)
        with epochs(kept) as on_epoch:
            released = steps.release(kept, space, on_epoch)
        show.released(released, out)
        shown = user or steps.latest_user(space)
        answers = {
            "before": steps.recommend(space.bundle, work=space, user=shown, drop_last=5),
            "after": steps.recommend(space.bundle, work=space, user=shown),
        }
        tracking.log_json({"user": shown, **answers}, "recommendations.json")
    show.before_after(shown, answers, out)
    out.say(f"\nSee runs, figures and the registered model:  persona ui   (run {active.info.run_id})")
    out.result(
        {
            "run_id": active.info.run_id,
            "prepared": prepared,
            "comparisons": [comparison.as_dict() for comparison in comparisons],
            "prototypes": banks,
            "released": released,
            "user": shown,
            "answers": answers,
        }
    )


@app.command(epilog="Example:  persona recsys evidence ml-100k-paper-sasrec --jobs 2")
def evidence(
    names: Annotated[list[str] | None, typer.Argument(help="Experiments; all by default.")] = None,
    data_folder: Annotated[Path | None, typer.Option(help="Folder with data sets that no package provides.")] = None,
    work: WorkOption = Path("work/evidence"),
    jobs: Jobs = 1,
    as_json: console.JsonOption = False,
) -> None:
    """Run the experiments behind docs/results.md that are missing or have changed, and render the page."""
    _, out = start(as_json)
    from benchmarks.evidence import recsys as evidence_
    from benchmarks.evidence import recsys_page as evidence_page
    from persona.errors import ConfigError, nearest

    known = evidence_.experiments()
    for name in names or ():
        if name not in known:
            raise ConfigError(f"there is no experiment {name!r}: {nearest(name, known)}")
    ran = []
    for name in names or list(known):
        experiment = known[name]
        with console.progress(name, experiment.seeds * len(experiment.studies or experiment.methods)) as advance:
            if evidence_.run(experiment, work, data_folder, jobs, bars.methods(advance, experiment.config.monitor)):
                ran.append(name)
        evidence_page.write()
    out.say(f"{evidence_.RESULTS}: {len(ran)} experiment(s) were run, the others were up to date")
    out.result({"ran": ran, "page": evidence_.RESULTS})


def start(as_json: bool, *, on_ranks: bool = False) -> tuple[Any, console.Output]:
    """The steps, and where to print. Heavy packages are loaded here, after the command line was understood.

    ``on_ranks`` says that the command may be done by several processes.
    """
    from persona import runtime
    from pipelines.steps import processes

    if not on_ranks:
        processes.refuse()
    runtime.configure()
    from pipelines.steps import recsys as recsys_steps

    return recsys_steps, console.Output(as_json)


def workspace(root: Path) -> Workspace:
    """The folder that steps share."""
    from pipelines.steps.workspace import Workspace

    return Workspace(root)


def _train(step: str, given: dict[str, Any], work: Path, config: Path | None, as_json: bool) -> None:
    from pipelines.steps import processes

    steps, out = start(as_json, on_ranks=True)
    space = workspace(work)
    with processes.joined() as ranks:
        settings = space.settings(given, config)
        with epochs(settings) as on_epoch:
            result = getattr(steps, step)(settings, space, on_epoch)
    if not ranks.main:
        return
    out.table(
        f"{result.name}: {result.epochs} epochs, best {result.best_epoch}",
        ["metric", f"validation, protocol {settings.protocol}"],
        [[name, value] for name, value in result.validation.items() if name != "epoch"],
    )
    out.result(result)


def epochs(settings: RecsysConfig) -> AbstractContextManager[OnEpoch]:
    """A bar for every training of a step."""
    return bars.trainings(settings.monitor, lambda training: settings.epochs)


def _with(methods: list[str], against: str) -> list[str]:
    """The methods asked for and the one that they are to be shown against; none are all.

    Raises:
        ConfigError: ``against`` is unknown, which is said before anything is trained.
    """
    from persona.comparison import with_host
    from recsys.methods import METHODS

    if against:
        with_host([against], METHODS)
    return [*methods, against] if methods and against else methods


def _evaluate(
    space: Workspace, settings: RecsysConfig, protocols: list[str], methods: list[str], seeds: int, jobs: int
) -> list[Comparison]:
    from persona.comparison import with_host
    from pipelines.steps import recsys as recsys_steps
    from recsys.methods import METHODS, RIVALS

    total = len(protocols) * seeds * len(with_host(methods, METHODS, RIVALS))
    with console.progress("methods", total) as advance:
        return recsys_steps.evaluate(
            settings,
            space,
            protocols=protocols,
            methods=methods,
            seeds=seeds,
            jobs=jobs,
            notify=bars.methods(advance, settings.monitor),
        )
