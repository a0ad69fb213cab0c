"""The commands `persona vision ...` and their entry points."""

from dataclasses import fields
from pathlib import Path

import pytest
import typer
import yaml

from pipelines import console
from pipelines.commands.vision import main as vision_cli
from pipelines.commands.vision import show as vision_show
from pipelines.steps.answers import Classified
from vision.config import VisionConfig
from vision.serving.classifier import Classification

COMMANDS = typer.main.get_command(vision_cli.app).commands
ENTRY_POINTS = yaml.safe_load((Path(__file__).parents[4] / "MLproject").read_text())["entry_points"]
STEPS = {"prepare", "pretrain", "edit", "evaluate", "prototypes", "release", "replay", "refine", "classify"}


def test_every_step_is_a_command_and_an_entry_point():
    assert set(COMMANDS) == STEPS | {"run"}
    named = {name for name in ENTRY_POINTS if name.startswith("vision")}
    assert named == {"vision"} | {f"vision-{step}" for step in STEPS}


@pytest.mark.parametrize("command", ["pretrain", "edit", "evaluate", "prototypes", "release", "run"])
def test_every_setting_is_an_option_with_help_and_default(command):
    options = {option.name: option for option in COMMANDS[command].params}
    for setting in fields(VisionConfig):
        text, default = options[setting.name].help.rsplit(" [default: ", 1)
        assert len(text) > 3
        assert default == f"{setting.default}]"


def test_an_answer_names_images_classes_and_what_was_skipped(capsys):
    found = Classification(["cat", "dog"], [[0.9, 0.1], [0.2, 0.8]], "host", fallback="the bundle has no editor")
    vision_show.answered(Classified(["a.png", "b.png"], [], ["c.png: it is damaged"], found), console.Output(False))
    shown = " ".join(capsys.readouterr().out.split())
    assert "skipped c.png: it is damaged" in shown
    assert "2 images, level host (the bundle has no editor)" in shown
    assert "0.8000" in shown
