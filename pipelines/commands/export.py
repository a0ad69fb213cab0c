"""The command `persona export`: a bundle in, a folder that a device runs out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines import console

if TYPE_CHECKING:
    from persona.device import DeviceBundle

EXAMPLES = (
    "Examples:\n\n"
    "persona export --model work/bundle --out film-bundle\n\n"
    "persona export --model models:/persona-recsys-movielens-small@candidate --out film-bundle --policy-data work --request-rate 0.1"
)

ModelOption = Annotated[str, typer.Option(help="A bundle folder or a registered model.")]
OutOption = Annotated[Path, typer.Option(help="The folder to make, or to replace.")]
FormatOption = Annotated[str, typer.Option("--format", help="onnx, or executorch where it is installed.")]
PolicyOption = Annotated[
    Path | None,
    typer.Option(help="A workspace with prepared events: fits when a device asks for a new edit (recommenders)."),
]
RateOption = Annotated[float, typer.Option(help="Requests an event that the policy is calibrated to.")]


def export(
    model: ModelOption,
    out: OutOption,
    form: FormatOption = "onnx",
    policy_data: PolicyOption = None,
    request_rate: RateOption = 0.1,
    as_json: console.JsonOption = False,
) -> None:
    """Make the folder that a device runs without torch: graph, adaptive weights, prototypes, vocabulary."""
    from persona import runtime
    from pipelines.steps.answers import bundle_folder

    runtime.configure()
    folder = bundle_folder(model)
    if _task(folder) == "vision":
        _export_vision(folder, out, form, policy_data)
    else:
        _export_recsys(folder, out, form, policy_data, request_rate)
    files = {path.relative_to(out).as_posix(): path.stat().st_size for path in sorted(out.rglob("*")) if path.is_file()}
    shown = console.Output(as_json)
    shown.table(f"Device bundle {out}", ["file", "bytes"], [*files.items(), ("in all", sum(files.values()))])
    if form == "onnx":
        _say_levels(_checked(out), shown)
    shown.result({"folder": out, "format": form, "files": files, "bytes": sum(files.values())})


def _task(folder: Path) -> str:
    from persona.errors import DataError
    from persona.storage import read_json

    header = folder / "bundle.json"
    if not header.is_file():
        raise DataError(f"{folder} holds no bundle (no bundle.json): run `persona recsys release` first")
    found: Any = read_json(header)
    return "vision" if isinstance(found, dict) and "vision" in str(found.get("format")) else "recsys"


def _export_recsys(folder: Path, out: Path, form: str, policy_data: Path | None, rate: float) -> None:
    from pipelines.steps.workspace import Workspace
    from recsys.device.export import export_recommender, fit_request_policy
    from recsys.serving.release import Release
    from recsys.task import RECSYS

    recommender = Release.load(folder)
    policy = None
    if policy_data is not None:
        policy = fit_request_policy(recommender, Workspace(policy_data).data(RECSYS), rate)
    export_recommender(recommender, out, form=form, policy=policy)


def _export_vision(folder: Path, out: Path, form: str, policy_data: Path | None) -> None:
    from persona.errors import ConfigError
    from vision.device.export import export_classifier
    from vision.serving.release import Release

    if policy_data is not None:
        raise ConfigError("classifiers have no request policy: leave --policy-data out")
    bundle = Release.load(folder)
    export_classifier(bundle.model, bundle.class_names, bundle.image_shape, out, bank=bundle.bank, form=form)


def _checked(out: Path) -> DeviceBundle:
    """The bundle as a device reads it: an export that no device could read is no success."""
    from persona.device import DeviceBundle

    return DeviceBundle.load(out)


def _say_levels(bundle: DeviceBundle, shown: console.Output) -> None:
    bank = "no prototype bank" if bundle.bank is None else f"{len(bundle.bank)} prototypes ({bundle.bank.version[:12]})"
    policy = "none" if bundle.policy is None else f"{bundle.policy.rate:g} requests an event"
    shown.say(f"Task {bundle.task}, host {bundle.host[:12]}, {bank}, request policy: {policy}")


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(epilog=EXAMPLES)(export)
