from dataclasses import fields
from typing import Any

import pytest
import typer

from persona.prototypes import RefineConfig
from pipelines import console
from pipelines.cli import main
from pipelines.commands.options import MAX_MISSED
from pipelines.commands.recsys import main as recsys_cli
from pipelines.commands.recsys.options import with_recsys_settings
from recsys.config import RecsysConfig

SETTINGS = fields(RecsysConfig)
app = typer.Typer()


@app.command()
@with_recsys_settings
def show(given: dict[str, Any], work: str = "work") -> dict[str, Any]:
    """Show what was given."""
    return {"work": work, **given}


def given(*arguments: str) -> dict[str, Any]:
    """What a command gets for these arguments."""
    return typer.main.get_command(app).main(args=list(arguments), standalone_mode=False)


def options(command: str) -> dict[str, Any]:
    return {option.name: option for option in typer.main.get_command(recsys_cli.app).commands[command].params}


@pytest.mark.parametrize("command", ["pretrain", "edit", "evaluate", "release", "run"])
def test_every_setting_is_an_option_with_help_and_default(command):
    found = options(command)
    for setting in SETTINGS:
        option = found[setting.name]
        assert option.opts == [f"--{setting.name.replace('_', '-')}"]
        text, default = option.help.rsplit(" [default: ", 1)
        assert len(text) > 3, f"{setting.name} says nothing"
        assert "``" not in text
        assert default == f"{setting.default}]"
        assert option.default is None, "not given is not the same as the default"
        switch = setting.name in RecsysConfig.switch_names
        assert option.type_descriptor.annotation is (bool if switch else type(setting.default))


def test_a_switch_says_yes_or_no_and_nothing_leaves_it(capsys):
    assert [given(*arguments)["seen"] for arguments in ((), ("--seen",), ("--no-seen",))] == [None, "yes", "no"]


def test_help_shows_every_setting_with_its_default(capsys):
    assert main(["recsys", "pretrain", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for setting in SETTINGS:
        assert f"--{setting.name.replace('_', '-')} " in shown
        assert f"[default: {setting.default}]" in shown
    assert (
        "which rows the editor learns from: held_back, cross_fitted, refreshed, joint, generated or frozen; auto is the"
        in shown
    )


def test_only_what_was_given_arrives():
    nothing = given()
    assert nothing == {"work": "work", **{setting.name: None for setting in SETTINGS}}
    some = given("--epochs", "3", "--work", "here", "--learning-rate", "0.5", "--host", "din")
    assert some == nothing | {"work": "here", "epochs": 3, "learning_rate": 0.5, "host": "din"}


def test_commands_split_prototypes_as_the_library_does():
    assert RefineConfig().max_missed == MAX_MISSED


@pytest.mark.parametrize(("flag", "value"), [("--sequences", True), ("--no-sequences", False)])
def test_a_switch_can_be_turned_on_and_off(flag, value):
    assert given(flag)["sequences"] is value


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--epochs", "many"], "Invalid value for '--epochs': Input should be a valid integer"),
        (["--lerning-rate", "1"], "--learning-rate"),
    ],
)
def test_what_is_no_option_or_no_value_is_refused(arguments, sentence, capsys):
    assert console.run(app, arguments) == 2
    assert sentence in capsys.readouterr().err
