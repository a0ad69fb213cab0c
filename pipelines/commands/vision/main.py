"""The commands `persona vision ...`: options in, a step of ``vision_steps`` or ``vision_bank_steps``, tables or JSON out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines import console
from pipelines.commands import bars, options
from pipelines.commands.vision import show as vision_show
from vision.config import VisionConfig

if TYPE_CHECKING:
    from pipelines.commands.bars import OnEpoch
    from pipelines.steps import vision as vision_steps
    from pipelines.steps.evaluate import Comparison
    from pipelines.steps.vision_workspace import VisionWorkspace

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")

DATA_HELP = "An image folder device/class/*.png, a Parquet or npz file with one row an image, or digits."
WORK_HELP = "Folder that the steps share: data, checkpoints, results, prototypes, bundle."
STREAMS_HELP = (
    "Make corrupted streams of the images: comma-separated orders among abrupt, gradual, recurring, mixed. "
    "By default abrupt for digits that are not divided, and none elsewhere."
)
# A first run compares these; `evaluate` compares all methods.
FIRST_METHODS = "host,batch_norm,tent,t3a,lame,finetune_adaptive,persona_prototypes,persona_held_back,persona"

WorkOption = Annotated[Path, typer.Option("--work", help=WORK_HELP)]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="TOML file with any of the settings.")]
DataOption = Annotated[str, typer.Option("--data", help=DATA_HELP)]
ImageColumn = Annotated[str | None, typer.Option("--image-column", help="Column of images, if its name does not tell.")]
LabelColumn = Annotated[str | None, typer.Option("--label-column", help="Column of classes.")]
DeviceColumn = Annotated[str | None, typer.Option("--device-column", help="Column of device ids.")]
GroupColumn = Annotated[str | None, typer.Option("--group-column", help="Column of populations or domains.")]
TestColumn = Annotated[str | None, typer.Option("--test-column", help="Column that marks images kept for tests.")]
Size = Annotated[int | None, typer.Option(help="Side in pixels that images are stretched to.")]
Divide = Annotated[int, typer.Option(min=0, help="Cut devices into devices of at most so many images; 0 leaves them.")]
StreamsOption = Annotated[str, typer.Option("--streams", help=STREAMS_HELP)]
Severity = Annotated[int, typer.Option(min=1, max=5, help="Full severity of corrupted streams.")]
Length = Annotated[int, typer.Option(min=1, help="Images of a corrupted stream.")]
Seeds = Annotated[int, typer.Option(min=1, help="How many seeds, counting up from --seed.")]
Model = Annotated[str, typer.Option(help="A bundle folder or a registered model; the workspace's by default.")]
Level = Annotated[str, typer.Option(help="edit, basis or prototype: personalised; host: the same for everybody.")]

WORK = Path("work/vision")


def with_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give ``command(given, ...)`` one option for every setting of ``VisionConfig``."""
    return options.with_settings(command, VisionConfig)


@app.callback(
    epilog="Examples:\n\n"
    "persona vision run                                        everything, on corrupted streams of digits\n\n"
    "persona vision run --data photos --work work/photos       your own folder device/class/*.png\n\n"
    "persona vision classify --images new.png,newer.png        what do these images of one device show"
)
def vision() -> None:
    """Image classification under device shift: from images of devices to a registered model that adapts to each."""


@app.command(epilog="Example:  persona vision prepare --data writers.npz --device-column writer --group-column hsf")
def prepare(
    data: DataOption = "digits",
    work: WorkOption = WORK,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    device_column: DeviceColumn = None,
    group_column: GroupColumn = None,
    test_column: TestColumn = None,
    size: Size = None,
    divide: Divide = 0,
    streams: StreamsOption = "",
    severity: Severity = 5,
    length: Length = 60,
    as_json: console.JsonOption = False,
) -> None:
    """Read images of devices from any source, say what was understood, and keep them."""
    steps, out = _start(as_json)
    columns = {"image": image_column, "label": label_column, "device": device_column}
    columns |= {"group": group_column, "test": test_column}
    wanted = _streams(steps, data, streams, severity, length, divide)
    result = steps.prepare(data, _workspace(work), columns=columns, size=size, divide=divide, streams=wanted)
    for line in result.understood:
        out.say(line)
    out.result(result)


@app.command(epilog="Example:  persona vision pretrain --host resnet18 --epochs 20")
@with_settings
def pretrain(
    given: dict[str, Any], work: WorkOption = WORK, config: ConfigOption = None, as_json: console.JsonOption = False
) -> None:
    """Train the host: shared and adaptive layers, the same for every device."""
    _train("pretrain", given, work, config, as_json)


@app.command(epilog="Example:  persona vision edit --adaptive classifier --context classes")
@with_settings
def edit(
    given: dict[str, Any], work: WorkOption = WORK, config: ConfigOption = None, as_json: console.JsonOption = False
) -> None:
    """Train the parameter editor for the host."""
    _train("edit", given, work, config, as_json)


@app.command(epilog="Example:  persona vision evaluate --seeds 3 --methods host,tent,persona_held_back")
@with_settings
def evaluate(
    given: dict[str, Any],
    work: WorkOption = WORK,
    config: ConfigOption = None,
    methods: Annotated[str, typer.Option(help="Comma-separated methods; all by default.")] = "",
    seeds: Seeds = 1,
    as_json: console.JsonOption = False,
) -> None:
    """Compare methods with the host on the same images of the same devices, with intervals over devices."""
    _, out = _start(as_json)
    space = _workspace(work)
    comparison = _evaluate(space, space.settings(given, config), options.split(methods), seeds)
    vision_show.show_comparison(comparison, out)
    out.result(comparison.as_dict())


@app.command(epilog="Example:  persona vision prototypes --prototypes 32")
@with_settings
def prototypes(
    given: dict[str, Any], work: WorkOption = WORK, config: ConfigOption = None, as_json: console.JsonOption = False
) -> None:
    """Fit a bank of prototypes to the edits of devices, choose its size by validation, and register it."""
    _, out = _start(as_json)
    from pipelines.steps import vision_bank as banks

    space = _workspace(work)
    settings = space.settings(given, config)
    with _epochs(settings) as on_epoch:
        banked = banks.prototypes(settings, space, on_epoch)
    vision_show.say_banked(banked, out)
    out.result(banked)


@app.command(epilog="Example:  persona vision release")
@with_settings
def release(
    given: dict[str, Any], work: WorkOption = WORK, config: ConfigOption = None, as_json: console.JsonOption = False
) -> None:
    """Pack host, editor and prototypes into a bundle, register it in MLflow, and call it the candidate."""
    steps, out = _start(as_json)
    space = _workspace(work)
    settings = space.settings(given, config)
    with _epochs(settings) as on_epoch:
        released = steps.release(settings, space, on_epoch)
    vision_show.say_released(released, out)
    out.result(released)


@app.command(epilog="Example:  persona vision replay")
def replay(work: WorkOption = WORK, as_json: console.JsonOption = False) -> None:
    """Play the streams of the test devices through the bundle, level by level, and keep what refinement may read."""
    _, out = _start(as_json)
    from pipelines.steps import vision_bank as banks

    space = _workspace(work)
    result = banks.replay(space.settings({}), space)
    vision_show.show_replay(result, out)
    out.result(result)


@app.command(epilog="Example:  persona vision refine --eta 0.5")
def refine(
    work: WorkOption = WORK,
    eta: Annotated[float, typer.Option(min=0, max=1, help="Share of the way to what devices ask for.")] = 0.5,
    min_users: Annotated[int, typer.Option(min=1, help="Devices without whom a prototype does not move.")] = 10,
    max_missed: options.MaxMissed = options.MAX_MISSED,
    as_json: console.JsonOption = False,
) -> None:
    """Move the prototypes by what devices showed in the last replay, without labels and gradients: a new version."""
    _, out = _start(as_json)
    from persona.prototypes import RefineConfig
    from pipelines.steps import vision_bank as banks

    space = _workspace(work)
    settings = space.settings({})
    limits = RefineConfig(eta=eta, min_users=min_users, max_missed=max_missed, seed=settings.seed)
    banked = banks.refine_bank(settings, space, limits)
    vision_show.say_banked(banked, out)
    out.result(banked)


@app.command(
    epilog="Examples:\n\n"
    "persona vision classify --device abrupt/fog/test0\n\n"
    "persona vision classify --images photos/today --level host\n\n"
    "persona vision classify --images a.png,b.png --model models:/persona-vision@candidate"
)
def classify(
    work: WorkOption = WORK,
    device: Annotated[str | None, typer.Option(help="A device of the prepared data; its last images.")] = None,
    images: Annotated[str, typer.Option(help="Comma-separated files or folders, the images of one device.")] = "",
    model: Model = "",
    level: Level = "edit",
    as_json: console.JsonOption = False,
) -> None:
    """Answer: what do these images of one device show."""
    from pipelines.steps import answers
    from pipelines.steps.workfolder import WorkFolder

    # Answers need no torch, which takes seconds.
    out, space = console.Output(as_json), WorkFolder(work)
    files = [Path(part) for part in options.split(images)]
    answer = answers.classify(model or space.bundle, work=space, device=device, images=files, level=level)
    vision_show.show_answer(answer, out)
    out.result(answer)


@app.command(epilog="Example:  persona vision run --data writers.npz --host-groups 0 --test-groups 4")
@with_settings
def run(
    given: dict[str, Any],
    data: DataOption = "digits",
    work: WorkOption = WORK,
    config: ConfigOption = None,
    methods: Annotated[str, typer.Option(help="Comma-separated methods.")] = FIRST_METHODS,
    seeds: Seeds = 1,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    device_column: DeviceColumn = None,
    group_column: GroupColumn = None,
    test_column: TestColumn = None,
    size: Size = None,
    divide: Divide = 0,
    streams: StreamsOption = "",
    severity: Severity = 5,
    length: Length = 60,
    as_json: console.JsonOption = False,
) -> None:
    """The whole way: prepare, pretrain, edit, evaluate, prototypes, release, replay, refine, classify."""
    from pipelines import tracking

    steps, out = _start(as_json)
    from pipelines.steps import answers
    from pipelines.steps import vision_bank as banks

    space = _workspace(work)
    columns = {"image": image_column, "label": label_column, "device": device_column}
    columns |= {"group": group_column, "test": test_column}
    wanted = _streams(steps, data, streams, severity, length, divide)
    tracking.connect(steps.EXPERIMENT)
    with tracking.run("vision", tags={"step": "run"}) as active:
        prepared = steps.prepare(data, space, columns=columns, size=size, divide=divide, streams=wanted)
        settings = space.settings(given, config)
        tracking.log_params({"source": data, **settings.as_dict()})
        for line in prepared.understood:
            out.say(line)
        comparison = _evaluate(space, settings, options.split(methods), seeds)
        vision_show.show_comparison(comparison, out)
        with _epochs(settings) as on_epoch:
            banked = banks.prototypes(settings, space, on_epoch)
        vision_show.say_banked(banked, out)
        released = steps.release(settings, space)
        vision_show.say_released(released, out)
        replayed = banks.replay(settings, space)
        vision_show.show_replay(replayed, out)
        refined = banks.refine_bank(settings, space)
        vision_show.say_banked(refined, out)
        shown = space.data().device_ids[replayed.most_improved[0]["device"]]
        answer = answers.classify(space.bundle, work=space, device=shown)
        tracking.log_json({"device": shown, "answer": answer}, "classification.json")
    vision_show.show_answer(answer, out)
    out.say(f"\nSee runs, figures and the registered models:  persona ui   (run {active.info.run_id})")
    parts = {"prepared": prepared, "comparison": comparison.as_dict(), "prototypes": banked, "released": released}
    out.result({"run_id": active.info.run_id, **parts, "replayed": replayed, "refined": refined, "answer": answer})


@app.command(epilog="Example:  persona vision evidence digits-streams")
def evidence(
    names: Annotated[list[str] | None, typer.Argument(help="Experiments; all by default.")] = None,
    data_folder: Annotated[Path | None, typer.Option(help="Folder with data sets that no package provides.")] = None,
    work: WorkOption = Path("work/evidence-vision"),
    as_json: console.JsonOption = False,
) -> None:
    """Run the experiments behind docs/vision-results.md that are missing or have changed, and render the page."""
    _, out = _start(as_json)
    from benchmarks.evidence import vision as vision_evidence
    from persona.errors import ConfigError, nearest

    known = vision_evidence.experiments()
    for name in names or ():
        if name not in known:
            raise ConfigError(f"there is no experiment {name!r}: {nearest(name, known)}")
    ran = []
    for name in names or list(known):
        experiment = known[name]
        total = experiment.seeds * len(experiment.methods) * max(1, len(experiment.variants))
        with console.progress(name, total) as advance:
            if vision_evidence.run(experiment, work, data_folder, bars.methods(advance, "accuracy")):
                ran.append(name)
        vision_evidence.RESULTS.write_text(vision_evidence.render(), encoding="utf-8")
    out.say(f"{vision_evidence.RESULTS}: {len(ran)} experiment(s) were run, the others were up to date")
    out.result({"ran": ran, "page": vision_evidence.RESULTS})


def _start(as_json: bool) -> tuple[Any, console.Output]:
    """Heavy packages are loaded here, after the command line was understood."""
    from persona import runtime

    runtime.configure()
    from pipelines.steps import vision as vision_steps

    return vision_steps, console.Output(as_json)


def _workspace(root: Path) -> VisionWorkspace:
    from pipelines.steps.vision_workspace import VisionWorkspace

    return VisionWorkspace(root)


def _streams(
    steps: Any, data: str, orders: str, severity: int, length: int, divide: int
) -> vision_steps.Streams | None:
    """The streams asked for; those of a first run where the source knows no devices."""
    chosen = options.split(orders) or (["abrupt"] if data == "digits" and not divide else [])
    return steps.Streams(tuple(chosen), severity, length) if chosen else None


def _train(step: str, given: dict[str, Any], work: Path, config: Path | None, as_json: bool) -> None:
    steps, out = _start(as_json)
    space = _workspace(work)
    settings = space.settings(given, config)
    with _epochs(settings) as on_epoch:
        result = getattr(steps, step)(settings, space, on_epoch)
    out.table(
        f"{result.name}: {result.epochs} epochs, best {result.best_epoch}",
        ["metric", "validation devices"],
        [[name, value] for name, value in result.validation.items() if name != "epoch"],
    )
    out.result(result)


def _epochs(settings: VisionConfig) -> AbstractContextManager[OnEpoch]:
    """A bar for every training of a step; editors have epochs of their own."""
    return bars.trainings(
        settings.monitor, lambda name: settings.editor_epochs if name.startswith("persona") else settings.epochs
    )


def _evaluate(space: VisionWorkspace, settings: VisionConfig, methods: list[str], seeds: int) -> Comparison:
    from persona.comparison import with_host
    from pipelines.steps import vision as vision_steps
    from vision.methods import METHODS

    with console.progress("methods", seeds * len(with_host(methods, METHODS))) as advance:
        notify = bars.methods(advance, settings.monitor)
        return vision_steps.evaluate(settings, space, methods=methods, seeds=seeds, notify=notify)
