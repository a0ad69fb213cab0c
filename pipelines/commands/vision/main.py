"""The commands `persona vision ...`: options in, a step, tables or JSON out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines import console
from pipelines.commands import options, task
from pipelines.commands.options import ConfigOption, Jobs, Model, NameOption, Seeds, WorkOption
from pipelines.commands.vision import show
from vision.task import VISION

if TYPE_CHECKING:
    from pipelines.steps.bank import Banked
    from pipelines.steps.vision import Prepared
    from pipelines.steps.workspace import Workspace
    from vision.config import VisionConfig

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")

DATA_HELP = "An image folder device/class/*.png, a Parquet or npz file with one row an image, or digits."
STREAMS_HELP = (
    "Make corrupted streams of the images: comma-separated orders among abrupt, gradual, recurring, mixed. "
    "By default abrupt for digits that are not divided, and none elsewhere."
)
# A first run compares these; `evaluate` compares all methods.
FIRST_METHODS = "host,batch_norm,tent,t3a,lame,finetune_adaptive,persona_prototypes,persona_held_back,persona"

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
Level = Annotated[str, typer.Option(help="edit, basis or prototype: personalised; host: the same for everybody.")]

WORK = VISION.work


def with_vision_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give ``command(given, ...)`` one option for every setting of a classifier."""
    return options.with_settings(command, VISION.config)


@dataclass(frozen=True)
class Source:
    """Images and how to read them: the options of ``prepare``."""

    data: DataOption = "digits"
    image_column: ImageColumn = None
    label_column: LabelColumn = None
    device_column: DeviceColumn = None
    group_column: GroupColumn = None
    test_column: TestColumn = None
    size: Size = None
    divide: Divide = 0
    streams: StreamsOption = ""
    severity: Severity = 5
    length: Length = 60
    name: NameOption = ""

    @property
    def columns(self) -> dict[str, str | None]:
        """The column of each role; ``None`` is found out."""
        return {
            "image": self.image_column,
            "label": self.label_column,
            "device": self.device_column,
            "group": self.group_column,
            "test": self.test_column,
        }


def with_images(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give ``command(source, ...)`` the options of a ``Source``."""
    return options.with_source(command, Source)


@app.callback(
    epilog="Examples:\n\n"
    "persona vision run                                        everything, on corrupted streams of digits\n\n"
    "persona vision run --data photos --work work/photos       your own folder device/class/*.png\n\n"
    "persona vision classify --images new.png,newer.png        what do these images of one device show"
)
def vision() -> None:
    """Image classification under device shift: from images of devices to a registered model that adapts to each."""


@app.command(epilog="Example:  persona vision prepare --data writers.npz --device-column writer --group-column hsf")
@with_images
def prepare(
    source: Source,
    work: WorkOption = WORK,
    as_json: console.JsonOption = False,
) -> None:
    """Read images of devices from any source, say what was understood, and keep them."""
    out = task.start(VISION, as_json)
    out.result(_prepared(task.workspace(work), source, out))


task.register(
    app,
    VISION,
    task.Wording(
        help={
            "pretrain": "Train the host: shared and adaptive layers, the same for every device.",
            "edit": "Train the parameter editor for the host.",
            "evaluate": "Compare methods with the host on the same images of the same devices, with intervals over devices.",
            "release": "Pack host, editor and prototypes into a bundle, register it in MLflow, and call it the candidate.",
        },
        examples={
            "pretrain": "Example:  persona vision pretrain --host resnet18 --epochs 20",
            "edit": "Example:  persona vision edit --adaptive classifier --context classes",
            "evaluate": "Example:  persona vision evaluate --seeds 3 --methods host,tent,persona_held_back",
            "release": "Example:  persona vision release",
        },
        validated=lambda settings: "validation devices",
        comparison=show.comparison,
        released=show.released,
    ),
)


@app.command(epilog="Example:  persona vision prototypes --prototypes 32")
@with_vision_settings
def prototypes(
    given: dict[str, Any], work: WorkOption = WORK, config: ConfigOption = None, as_json: console.JsonOption = False
) -> None:
    """Fit a bank of prototypes to the edits of devices, choose its size by validation, and register it."""
    out = task.start(VISION, as_json)
    space = task.workspace(work)
    out.result(show.as_json(_fitted(space, space.settings(VISION, given, config), out)))


@app.command(epilog="Example:  persona vision replay")
def replay(work: WorkOption = WORK, as_json: console.JsonOption = False) -> None:
    """Play the streams of the test devices through the bundle, level by level, and keep what refinement may read."""
    out = task.start(VISION, as_json)
    from pipelines.steps import vision_streams

    space = task.workspace(work)
    result = vision_streams.replay(space.settings(VISION, {}), space)
    show.replayed(result, out)
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
    out = task.start(VISION, as_json)
    from persona.prototypes import RefineConfig
    from pipelines.steps import vision_streams

    space = task.workspace(work)
    settings = space.settings(VISION, {})
    limits = RefineConfig(eta=eta, min_users=min_users, max_missed=max_missed, seed=settings.seed)
    made = vision_streams.refine(settings, space, limits)
    show.banked(made, out)
    out.result(show.as_json(made))


@app.command(
    epilog="Examples:\n\n"
    "persona vision classify --device abrupt/fog/test0\n\n"
    "persona vision classify --images photos/today --level host\n\n"
    "persona vision classify --images a.png,b.png --model models:/persona-vision-digits@candidate"
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

    # Answers need no torch, which takes seconds.
    out, space = console.Output(as_json), task.workspace(work)
    files = [Path(part) for part in options.split(images)]
    answer = answers.classify(model or space.bundle, work=space, device=device, images=files, level=level)
    show.answered(answer, out)
    out.result(answer)


@app.command(epilog="Example:  persona vision run --data writers.npz --host-groups 0 --test-groups 4")
@with_vision_settings
@with_images
def run(
    given: dict[str, Any],
    source: Source,
    work: WorkOption = WORK,
    config: ConfigOption = None,
    methods: Annotated[str, typer.Option(help="Comma-separated methods.")] = FIRST_METHODS,
    seeds: Seeds = 1,
    jobs: Jobs = 1,
    as_json: console.JsonOption = False,
) -> None:
    """The whole way: prepare, pretrain, edit, evaluate, prototypes, release, replay, refine, classify."""
    out = task.start(VISION, as_json)
    space = task.workspace(work)

    def settled() -> VisionConfig:
        """What is prepared suggests settings."""
        settings: VisionConfig = space.settings(VISION, given, config)
        return settings

    out.result(_whole(space, settled, source, {"methods": options.split(methods), "seeds": seeds, "jobs": jobs}, out))


def _whole(
    space: Workspace,
    settled: Callable[[], VisionConfig],
    source: Source,
    asked: dict[str, Any],
    out: console.Output,
) -> dict[str, Any]:
    """All steps inside one run, and what each of them returned."""
    from pipelines import tracking
    from pipelines.steps import answers, vision_streams

    with task.whole(VISION, space, source.data, source.name) as active:
        prepared = _prepared(space, source, out)
        settings = settled()
        tracking.log_params({"source": source.data, **settings.as_dict()})
        [comparison] = task.evaluated(VISION, space, settings, [], **asked)
        show.comparison(comparison, out)
        made = _fitted(space, settings, out)
        released = task.released(VISION, space, settings)
        show.released(released, out)
        replayed = vision_streams.replay(settings, space)
        show.replayed(replayed, out)
        refined = vision_streams.refine(settings, space)
        show.banked(refined, out)
        shown = space.data(VISION).device_ids[replayed.most_improved[0]["device"]]
        answer = answers.classify(space.bundle, work=space, device=shown)
        tracking.log_json({"device": shown, "answer": answer}, "classification.json")
        task.log_headlines(VISION, [comparison], released)
    show.answered(answer, out)
    out.say(f"\nSee runs, figures and the registered models:  persona ui   (run {active.info.run_id})")
    return {
        "run_id": active.info.run_id,
        "prepared": prepared,
        "comparison": comparison.as_dict(),
        "prototypes": show.as_json(made),
        "released": released,
        "replayed": replayed,
        "refined": show.as_json(refined),
        "answer": answer,
    }


def _prepared(space: Workspace, source: Source, out: console.Output) -> Prepared:
    """The step ``prepare``, with streams as they are asked for; those of a first run where the source knows no devices."""
    from pipelines.steps import vision as steps

    orders = options.split(source.streams) or (["abrupt"] if source.data == "digits" and not source.divide else [])
    streams = steps.Streams(tuple(orders), source.severity, source.length) if orders else None
    result = steps.prepare(
        source.data,
        space,
        columns=source.columns,
        size=source.size,
        divide=source.divide,
        streams=streams,
        name=source.name,
    )
    for line in result.understood:
        out.say(line)
    return result


def _fitted(space: Workspace, settings: VisionConfig, out: console.Output) -> Banked:
    """The step ``prototypes`` with bars of its trainings; the last version that it made."""
    from pipelines.steps import bank, vision_streams

    with task.epochs(settings) as on_epoch:
        made = bank.prototypes(VISION, settings, space, on_epoch=on_epoch, figures=vision_streams.figures)
    for version in made:
        show.banked(version, out)
    return made[-1]
