from pathlib import Path

import numpy as np
import pytest

from persona.bootstrap import Interval, SeedsInterval
from persona.comparison import Measured, Row
from persona.errors import ConfigError
from pipelines import console
from pipelines.commands import task
from pipelines.commands.recsys import show as recsys_show
from pipelines.steps.evaluate import Comparison
from pipelines.steps.release import Released
from pipelines.steps.workspace import Workspace
from pipelines.tracking.registry import Registered
from recsys.config import RecsysConfig
from recsys.task import RECSYS


def row(method, low=None, high=None):
    differences = {} if low is None else {"uauc": SeedsInterval(Interval((low + high) / 2, low, high), (0.0,))}
    return Row(method, {"uauc": 0.8}, differences, seconds=1.0, refresh_bytes=8)


@pytest.fixture
def comparison():
    rows = [row("host"), row("up", 0.01, 0.02), row("even", -0.01, 0.02), row("down", -0.03, -0.01)]
    return Comparison("time", {"host": "gru4rec"}, 3, "users", 600, ("uauc",), rows, [])


def test_one_sentence_says_whose_interval_is_above_the_host(comparison, capsys):
    recsys_show.comparison(comparison, console.Output(False))
    out = capsys.readouterr().out
    assert "600 users with events after the cut, 3 seed(s), gru4rec host" in out
    assert "time/uauc, methods whose interval is above the host: up; below the host: down" in out
    empty = Comparison("paper", {"host": "din"}, 1, "users", 9, ("uauc",), [row("host"), row("even", -1, 1)], [])
    assert recsys_show.verdict(empty, "uauc").endswith("above the host: none; below the host: none")


def measured(method, values):
    values = np.array(values)
    return Measured(method, {"uauc": float(values.mean())}, {"uauc": values}, np.arange(len(values)))


@pytest.fixture
def made():
    methods = {"host": [0.5, 0.7], "item_knn": [0.6, 0.9], "persona_held_back": [0.5, 0.5], "persona": [0.7, 0.7]}
    seeds = [{name: measured(name, values) for name, values in methods.items()}]
    return Comparison.of_seeds(seeds, protocol="time", settings={"host": "din"}, unit="users", headlines=("uauc",))


def test_the_last_line_names_the_strongest_rival(made, capsys):
    recsys_show.comparison(made, console.Output(False))
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("time/uauc, strongest rival: item_knn with 0.7500; persona against it -0.0500 [")
    hosts = Comparison("paper", {"host": "din"}, 1, "users", 9, ("uauc",), [row("host")], [])
    assert recsys_show.strongest(hosts) == "paper/uauc, strongest rival: host with 0.8000"


def test_methods_can_be_shown_against_any_of_them(made, capsys):
    task._against(made, "item_knn", console.Output(False))
    out = capsys.readouterr().out
    assert "differences to item_knn" in out
    assert "-0.1500" in out, "the host"


def test_settings_that_are_taken_over_are_named_in_one_line(tmp_path, capsys):
    space, out = Workspace(tmp_path), console.Output(False)
    recsys_show.taken_over(space, {}, None, out)
    assert capsys.readouterr().out == ""
    space.remember(RecsysConfig(dim=8, host="din"))
    recsys_show.taken_over(space, {"host": "sasrec"}, None, out)
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith(f"Taken over from {tmp_path / 'settings.json'}: dim = 8 (")


@pytest.mark.parametrize(
    ("bank", "k", "said"), [("", 0, "no prototypes"), ("ab" * 32, 8, "8 prototypes of version abab")]
)
def test_a_release_says_what_it_holds(capsys, bank, k, said):
    made = Released(Path("b"), Registered("m", 1, "models:/m/1"), "joint", "h", {}, bank, k)
    recsys_show.released(made, console.Output(False))
    assert said in capsys.readouterr().out


def test_epochs_that_are_told_twice_are_shown_once(capsys):
    """A training that several parts of a step ask for tells its history to each of them."""
    with task.epochs(RecsysConfig(epochs=2, monitor="uauc")) as on_epoch:
        for _ in range(2):
            for epoch in range(2):
                on_epoch("host", {"epoch": float(epoch), "uauc": 0.5 + epoch})
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("host 2/2, ")
    assert line.endswith("uauc 1.5000")


def test_what_methods_are_shown_against_is_measured_and_known():
    assert task._with(RECSYS, ["duet"], "item_knn", []) == ["duet", "item_knn"]
    assert task._with(RECSYS, [], "item_knn", []) == [], "all methods"
    assert task._with(RECSYS, ["duet"], "", []) == ["duet"]
    with pytest.raises(ConfigError, match="unknown method 'item_kn': did you mean 'item_knn'"):
        task._with(RECSYS, [], "item_kn", [])
