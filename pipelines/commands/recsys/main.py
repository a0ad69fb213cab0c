"""The commands `persona recsys ...`: options in, a step, tables or JSON out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines import console
from pipelines.commands import task
from pipelines.commands.options import ConfigOption, Jobs, Model, NameOption, Seeds, WorkOption, split, with_source
from pipelines.commands.recsys import plan, prototypes, replay, show
from pipelines.commands.recsys.options import (
    WORK,
    Baskets,
    DataOption,
    ItemColumn,
    LevelOption,
    MinEvents,
    Protocols,
    SeenOption,
    TimeColumn,
    TitleColumn,
    UserColumn,
    with_recsys_settings,
)
from recsys.task import RECSYS

if TYPE_CHECKING:
    from pipelines.steps.answers import Recommended
    from pipelines.steps.recsys import Prepared
    from pipelines.steps.workspace import Workspace
    from recsys.config import RecsysConfig

# A first run compares these, few of which are trained; `evaluate` compares all methods.
FIRST_METHODS = (
    "host,popularity,popularity_recent,item_knn,markov,personal,host_refreshed,finetune_all,persona_prototypes,persona"
)

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")


@dataclass(frozen=True)
class Source:
    """A log and how to read it: the options of ``prepare``."""

    data: DataOption
    user_column: UserColumn = None
    item_column: ItemColumn = None
    time_column: TimeColumn = None
    title_column: TitleColumn = None
    min_events: MinEvents = 1
    baskets: Baskets = None
    name: NameOption = ""

    @property
    def columns(self) -> dict[str, str | None]:
        """The column of each role; ``None`` is found out."""
        return {
            "user": self.user_column,
            "item": self.item_column,
            "time": self.time_column,
            "title": self.title_column,
        }


def with_log(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give ``command(source, ...)`` the options of a ``Source``."""
    return with_source(command, Source)


@dataclass(frozen=True)
class Compared:
    """What is compared, as ``evaluate`` takes it."""

    protocols: list[str]
    methods: list[str]
    seeds: int
    jobs: int


@app.callback(
    epilog="Examples:\n\n"
    "persona recsys run --data movielens-small                 everything, on real data\n\n"
    "persona recsys run --data events.csv --protocol time      your own log\n\n"
    "persona recsys recommend --user 42 --k 5                  what should this user see now"
)
def recsys() -> None:
    """Personalised recommendation: from an interaction log to a registered model that answers."""


@app.command(epilog="Example:  persona recsys prepare --data events.csv --user-column customer")
@with_log
def prepare(
    source: Source,
    work: WorkOption = WORK,
    as_json: console.JsonOption = False,
) -> None:
    """Read an interaction log of any form, say what was understood, and keep it as sequences."""
    out = task.start(RECSYS, as_json)
    out.result(_prepared(task.workspace(work), source, out))


task.register(
    app,
    RECSYS,
    task.Wording(
        help={
            "pretrain": "Train the host: shared and adaptive layers, the same for everybody.",
            "edit": "Train the parameter editor for the host.",
            "evaluate": "Compare methods with the host on the same rows and negatives, with intervals over users.",
        },
        examples={
            "pretrain": "Example:  persona recsys pretrain --host gru4rec --protocol paper",
            "edit": "Example:  persona recsys edit --transfer recurrent --bound frobenius",
            "evaluate": "Example:  persona recsys evaluate --seeds 3 --methods host,finetune_all,persona_held_back",
        },
        validated=lambda settings: f"validation, protocol {settings.protocol}",
        comparison=show.comparison,
        released=show.released,
    ),
)


@app.command(epilog="Example:  persona recsys release --work work")
@with_recsys_settings
def release(
    given: dict[str, Any],
    work: WorkOption = WORK,
    config: ConfigOption = None,
    item_table: Annotated[
        str, typer.Option(help="How the service keeps items: float32, int8, int4; chosen by their number by default.")
    ] = "",
    name: NameOption = "",
    as_json: console.JsonOption = False,
) -> None:
    """Pack host, editor and prototypes into a bundle, register it in MLflow, and call it the candidate."""
    out = task.start(RECSYS, as_json)
    space = task.workspace(work)
    settings = space.settings(RECSYS, given, config)
    if name:
        space.call(name)
    made = task.released(RECSYS, space, settings, item_table=item_table)
    show.released(made, out)
    out.result(made)


@app.command(
    epilog="Examples:\n\n"
    "persona recsys recommend --user 42 --k 5\n\n"
    "persona recsys recommend --user 42 --drop-last 5          before the last five events\n\n"
    "persona recsys recommend --history 1193,661,914 --model models:/persona-recsys-movielens-small@candidate"
)
def recommend(
    work: WorkOption = WORK,
    user: Annotated[str | None, typer.Option(help="A user of the prepared log.")] = None,
    history: Annotated[str | None, typer.Option(help="Comma-separated item ids, oldest first.")] = None,
    model: Model = "",
    k: Annotated[int, typer.Option(min=1, help="How many items.")] = 10,
    level: LevelOption = "edit",
    drop_last: Annotated[int, typer.Option(min=0, help="Leave out this many of the latest events.")] = 0,
    seen: SeenOption = None,
    as_json: console.JsonOption = False,
) -> None:
    """Answer: what should this user see now."""
    from pipelines.steps import answers

    # Answers need no torch, which takes seconds.
    out, space = console.Output(as_json), task.workspace(work)
    answer = answers.recommend(
        model or space.bundle,
        work=space,
        user=user,
        history=None if history is None else split(history),
        k=k,
        level=level,
        drop_last=drop_last,
        seen=seen,
    )
    show.answered(answer, out)
    out.result(answer)


@app.command(epilog="Example:  persona recsys run --data movielens-small --protocols time,paper --jobs 2")
@with_recsys_settings
@with_log
def run(
    given: dict[str, Any],
    source: Source,
    work: WorkOption = WORK,
    config: ConfigOption = None,
    protocols: Protocols = "",
    methods: Annotated[str, typer.Option(help="Comma-separated methods; `evaluate --help` names all.")] = FIRST_METHODS,
    seeds: Seeds = 1,
    jobs: Jobs = 1,
    user: Annotated[
        str | None, typer.Option(help="Whom to recommend to in the end; the user active last by default.")
    ] = None,
    as_json: console.JsonOption = False,
) -> None:
    """The whole way, as nested MLflow runs: prepare, evaluate (trains host, editor, baselines), prototypes, release.

    In the end it recommends to one user, before and after their last five events.
    """
    out = task.start(RECSYS, as_json)
    space = task.workspace(work)
    settings = space.settings(RECSYS, given, config)
    show.taken_over(space, given, config, out)
    asked = Compared(split(protocols) or [settings.protocol], split(methods), seeds, jobs)
    out.result(_whole(space, settings, source, asked, user, out))


def _whole(
    space: Workspace, settings: RecsysConfig, source: Source, asked: Compared, user: str | None, out: console.Output
) -> dict[str, Any]:
    """All steps inside one run, and what each of them returned."""
    from pipelines import tracking

    with task.whole(RECSYS, space, source.data, source.name, settings.host) as active:
        tracking.log_params({"source": source.data, **settings.as_dict()})
        prepared = _prepared(space, source, out)
        comparisons = task.evaluated(RECSYS, space, settings, **vars(asked))
        for comparison in comparisons:
            show.comparison(comparison, out)
        kept = settings.under_protocol(asked.protocols[0])
        banks = prototypes.fit(space, kept)
        show.bank(banks, out)
        released = task.released(RECSYS, space, kept)
        show.released(released, out)
        shown, answers = _before_and_after(space, user)
        tracking.log_json({"user": shown, **answers}, "recommendations.json")
        task.log_headlines(RECSYS, comparisons, released)
    show.before_after(shown, answers, out)
    out.say(f"\nSee runs, figures and the registered model:  persona ui   (run {active.info.run_id})")
    return {
        "run_id": active.info.run_id,
        "prepared": prepared,
        "comparisons": [comparison.as_dict() for comparison in comparisons],
        "prototypes": banks,
        "released": released,
        "user": shown,
        "answers": answers,
    }


def _prepared(space: Workspace, source: Source, out: console.Output) -> Prepared:
    from pipelines.steps import recsys as steps

    result = steps.prepare(
        source.data,
        space,
        columns=source.columns,
        min_events=source.min_events,
        baskets=source.baskets,
        name=source.name,
    )
    for line in result.understood:
        out.say(line)
    return result


def _before_and_after(space: Workspace, user: str | None) -> tuple[str, dict[str, Recommended]]:
    """What the last five events of a user change; of the one active last by default."""
    from pipelines.steps import answers

    shown = user or answers.latest_user(space)
    return shown, {
        "before": answers.recommend(space.bundle, work=space, user=shown, drop_last=5),
        "after": answers.recommend(space.bundle, work=space, user=shown),
    }


prototypes.register(app)
plan.register(app)
replay.register(app)
