"""The commands that all tasks have, made from a ``Task``: options in, a step, tables or JSON out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from persona.errors import ConfigError
from persona.task import OnEpoch, Task
from pipelines import console
from pipelines.commands import bars
from pipelines.commands.options import (
    METHODS_HELP,
    ConfigOption,
    Jobs,
    Methods,
    NameOption,
    Seeds,
    WorkOption,
    split,
    with_settings,
)

if TYPE_CHECKING:
    from pipelines.steps.evaluate import Comparison
    from pipelines.steps.release import Released
    from pipelines.steps.workspace import Workspace

Against = Annotated[str, typer.Option(help="A method to show the differences to, beside those to the host.")]

Scores = Annotated[
    str,
    typer.Option(
        help="Comma-separated CSV or Parquet files of scores that others computed (user, position or time, item, score), each "
        "judged on the same rows as the method that is called like it."
    ),
]
RowsOut = Annotated[
    Path | None,
    typer.Option(
        help="Write the test rows with their candidates into this Parquet file, for others to score, and stop."
    ),
]

TRAININGS = ("pretrain", "edit")


@dataclass(frozen=True)
class Wording:
    """What the common commands of a task say of themselves.

    Attributes:
        help: of every command, by its name.
        examples: likewise.
        validated: heading of what a training reached.
        comparison: shows one comparison of methods.
        released: shows what was released.
    """

    help: Mapping[str, str]
    examples: Mapping[str, str]
    validated: Callable[[Any], str]
    comparison: Callable[[Comparison, console.Output], None]
    released: Callable[[Released, console.Output], None]


def register(app: typer.Typer, task: Task, words: Wording) -> None:
    """Add the commands that the ``words`` speak of, among ``pretrain``, ``edit``, ``evaluate`` and ``release``, to ``app``."""
    fixed: dict[str, Any] = {} if len(task.protocols) > 1 else {"protocols": ""}
    fixed |= {} if task.rows else {"scores": "", "rows_out": None}
    for command in (
        *(_training(task, words, step) for step in TRAININGS),
        _evaluate(task, words),
        _release(task, words),
    ):
        name = command.__name__
        if name in words.help:
            command.__doc__ = words.help[name]
            without = fixed if name == "evaluate" else {}
            app.command(name, epilog=words.examples[name])(with_settings(command, task.config, without))


def start(task: Task, as_json: bool, *, on_ranks: bool = False) -> console.Output:
    """Where to print. torch is set up here, after the command line was understood.

    ``on_ranks`` says that the command may be done by several processes.
    """
    from persona import runtime
    from pipelines.steps import processes

    if not (on_ranks and task.ranks):
        processes.refuse()
    runtime.configure()
    return console.Output(as_json)


def workspace(root: Path) -> Workspace:
    """The folder that steps share."""
    from pipelines.steps.workspace import Workspace

    return Workspace(root)


def epochs(settings: Any) -> AbstractContextManager[OnEpoch]:
    """A bar for every training of a step."""
    return bars.trainings(settings.monitor, settings.epochs_of)


def evaluated(
    task: Task,
    space: Workspace,
    settings: Any,
    protocols: Sequence[str],
    methods: Sequence[str],
    seeds: int,
    jobs: int,
    scores: Sequence[Path] = (),
) -> list[Comparison]:
    """The step ``evaluate`` with a bar of its methods."""
    from pipelines.steps import evaluate

    protocols = list(protocols) or [settings.protocol]
    quick = {*task.untrained, *(path.stem for path in scores)}
    trained = [name for name in evaluate.chosen(task, methods) if name not in quick]
    with console.progress("trained methods", len(protocols) * seeds * len(trained)) as advance:
        notify = bars.methods(advance, settings.monitor, quick)
        return evaluate.evaluate(
            task,
            settings,
            space,
            protocols=protocols,
            methods=methods,
            scores=scores,
            seeds=seeds,
            jobs=jobs,
            notify=notify,
        )


def released(task: Task, space: Workspace, settings: Any, **options: Any) -> Released:
    """The step ``release`` with bars of its trainings."""
    from pipelines.steps import release

    with epochs(settings) as on_epoch:
        return release.release(task, settings, space, on_epoch, **options)


@contextmanager
def whole(task: Task, space: Workspace, source: str, name: str, host: str = "") -> Iterator[Any]:
    """The run around all steps, called after task, data and host; its tag ``data`` is what models are called after."""
    from pipelines import tracking

    data = space.name_of(source, name)
    space.connect(task, data)
    with tracking.run(" ".join(filter(None, (task.name, data, host))), tags={"step": "run", "data": data}) as active:
        yield active


def log_headlines(task: Task, comparisons: Sequence[Comparison], released: Released) -> None:
    """Leave in the run around all steps what lists of runs show of it: headlines of the host and of what was released."""
    from persona.comparison import REFERENCE, metric_name
    from pipelines import tracking

    found = {}
    for comparison in comparisons:
        [host] = [row for row in comparison.rows if row.method == REFERENCE]
        for headline in comparison.headlines:
            found[metric_name(f"{comparison.protocol} {REFERENCE}", headline)] = host.metrics[headline]
            name = metric_name(comparison.protocol, headline)
            found |= {name: released.metrics[name]} if name in released.metrics else {}
    tracking.log_metrics_batch(found)


def _training(task: Task, words: Wording, step: str) -> Callable[..., None]:
    def command(
        given: dict[str, Any],
        work: WorkOption = task.work,
        config: ConfigOption = None,
        as_json: console.JsonOption = False,
    ) -> None:
        out = start(task, as_json, on_ranks=True)
        from persona.training.ranks import current
        from pipelines.steps import processes, train

        space = workspace(work)
        with processes.joined() if task.ranks else nullcontext(current()) as ranks:
            settings = space.settings(task, given, config)
            with epochs(settings) as on_epoch:
                result = getattr(train, step)(task, settings, space, on_epoch)
        if not ranks.main:
            return
        rows = [[name, value] for name, value in result.validation.items() if name != "epoch"]
        title = f"{result.name}: {result.epochs} epochs, best {result.best_epoch}"
        out.table(title, ["metric", words.validated(settings)], rows)
        out.result(result)

    command.__name__ = step
    return command


def _evaluate(task: Task, words: Wording) -> Callable[..., None]:
    def evaluate(
        given: dict[str, Any],
        work: WorkOption = task.work,
        config: ConfigOption = None,
        methods: Methods = "",
        protocols: Annotated[str, typer.Option(help="Comma-separated protocols; --protocol by default.")] = "",
        scores: Scores = "",
        rows_out: RowsOut = None,
        seeds: Seeds = 1,
        jobs: Jobs = 1,
        against: Against = "",
        as_json: console.JsonOption = False,
    ) -> None:
        out = start(task, as_json)
        space = workspace(work)
        settings = space.settings(task, given, config)
        if rows_out is not None:
            _rows(task, space, settings, split(protocols), seeds, rows_out, out)
            return
        files = [Path(path) for path in split(scores)]
        asked = _with(task, split(methods), against, files)
        found = []
        for comparison in evaluated(task, space, settings, split(protocols), asked, seeds, jobs, files):
            words.comparison(comparison, out)
            found.append(comparison.as_dict())
            if against:
                _against(comparison, against, out)
                found[-1]["against"] = {against: [row.as_dict() for row in comparison.against(against)]}
        out.result(found if len(task.protocols) > 1 else found[0])

    text = f"{METHODS_HELP} They are {', '.join(task.named)}; or a function of your own, as my_package.module:train."
    evaluate.__annotations__["methods"] = Annotated[str, typer.Option(help=text)]
    return evaluate


def _rows(
    task: Task, space: Workspace, settings: Any, protocols: list[str], seeds: int, path: Path, out: console.Output
) -> None:
    """The test rows of one protocol into a file."""
    from pipelines.steps import evaluate

    if len(protocols) > 1:
        raise ConfigError(f"--rows-out holds the rows of one protocol: give one of --protocols {', '.join(protocols)}")
    protocol = protocols[0] if protocols else settings.protocol
    count = evaluate.write_rows(task, settings, space, protocol, seeds, path)
    out.say(
        f"{path}: {count:,} rows of protocol {protocol}; judge their scores with --scores FILE and the same settings"
    )
    out.result({"rows": count, "path": path, "protocol": protocol})


def _with(task: Task, methods: list[str], against: str, scores: Sequence[Path]) -> list[str]:
    """The methods asked for and the one that they are to be shown against, which is checked before anything is trained."""
    from persona.comparison import with_host

    if not against or against in {path.stem for path in scores} or against in methods:
        return methods
    with_host([against], task.methods())
    return [*methods, against] if methods else methods


def _against(found: Comparison, method: str, out: console.Output) -> None:
    """All methods against one of them, instead of the host."""
    rows = [
        [row.method, *(str(row.differences[h].interval) if row.differences else "-" for h in found.headlines)]
        for row in found.against(method)
    ]
    columns = [f"{found.protocol}/{h} [95 %]" for h in found.headlines]
    out.table(f"Protocol {found.protocol}: differences to {method}", ["method", *columns], rows)


def _release(task: Task, words: Wording) -> Callable[..., None]:
    def release(
        given: dict[str, Any],
        work: WorkOption = task.work,
        config: ConfigOption = None,
        name: NameOption = "",
        as_json: console.JsonOption = False,
    ) -> None:
        out = start(task, as_json)
        space = workspace(work)
        settings = space.settings(task, given, config)
        if name:
            space.call(name)
        made = released(task, space, settings)
        words.released(made, out)
        out.result(made)

    return release
