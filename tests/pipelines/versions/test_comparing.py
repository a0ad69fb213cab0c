import json
from html.parser import HTMLParser

import mlflow
import numpy as np
import pytest

from persona.errors import ConfigError
from persona.prototypes import PrototypeBank
from pipelines import tracking
from pipelines.cli import main
from pipelines.versions import comparing, comparison_log, pages
from pipelines.versions.comparing import Side
from tests.persona.prototypes import world
from tests.pipelines.made_versions import BANKS, MODEL, refined, register, register_bank, snapshot

USERS = 30
LIGHT = np.arange(USERS) < USERS // 3
OLD = [j % 3 for j in range(USERS)]
NEW = [0, *OLD[1:-1], 0]  # the last one changed prototype, the first did not


def answers(lists):
    return [
        {"unit": unit, "input": "Film 9", "rank": rank, "item": item, "title": f"Film {item}"}
        for unit, items in lists.items()
        for rank, item in enumerate(items, start=1)
    ]


BEFORE = snapshot(np.full(USERS, 0.4), USERS, prototypes=OLD, answers=answers({"u0": "abc", "u29": "abc"}))
# Light users lose, all others gain.
AFTER = snapshot(np.where(LIGHT, 0.35, 0.5), USERS, prototypes=NEW, answers=answers({"u0": "abc", "u29": "<dc"}))


def sides(a=BEFORE, b=AFTER, **more):
    return (
        Side("films/1", "r1", {"epochs": "2", "host": "din"}, {"time/auc": 0.8}, snapshot=a, **more),
        Side("films/2", "r2", {"epochs": "3", "host": "din"}, {"time/uauc": 0.9}, snapshot=b, **more),
    )


@pytest.fixture
def difference():
    return comparing.compare(*sides())


def test_gains_say_which_is_better_and_for_whom(difference):
    (overall,) = difference.overall
    assert (overall.metric, overall.group, overall.units, overall.better) == ("time/ndcg_10", "", USERS, "B")
    assert overall.gain.mean == pytest.approx(0.05)
    assert [(gain.group, gain.better) for gain in difference.segments] == [
        ("light", "A"),
        ("medium", "B"),
        ("heavy", "B"),
    ]
    assert difference.segments[0].gain.mean == pytest.approx(-0.05)
    text = " ".join(difference.verdict)
    assert "Over all 30 users: version 2 is better by time/ndcg_10 +0.05" in text
    assert "Light users: version 1 is better by time/ndcg_10 +0.0500 [+0.0500, +0.0500]." in text
    assert "Users that kept their prototype: version 2 is better by" in text
    assert "1 of 30 users changed prototype" in text


def test_versions_that_do_not_differ_are_undecided():
    difference = comparing.compare(*sides(b=BEFORE))
    assert difference.overall[0].better == "undecided"
    assert difference.verdict[0] == "Neither is better beyond doubt over all 30 users: every interval holds zero."
    assert (difference.risen, difference.fallen, difference.moves.moved) == ([], [], 0)


def test_who_moved_and_what_they_gained(difference):
    assert difference.moves.moved == 1
    assert np.array(difference.moves.flow).sum() == USERS
    assert difference.moves.flow[2][0] == 1
    groups = {gain.group: gain for gain in difference.causes}
    assert groups["changed prototype"].units == 1
    assert groups["changed prototype"].better == "undecided", "one user proves nothing"
    assert groups["kept their prototype"].units == USERS - 1
    assert sum(gain.units for name, gain in groups.items() if name.startswith("are at prototype ")) == USERS


def test_items_that_rose_and_fell_and_examples(difference):
    assert [(shift.item, shift.a, shift.b) for shift in difference.risen] == [("<", 0.0, 0.5), ("d", 0.0, 0.5)]
    assert [(shift.item, shift.a, shift.b) for shift in difference.fallen] == [("b", 1.0, 0.5), ("a", 1.0, 0.5)]
    changed, same = difference.examples
    assert (changed.unit, changed.segment, changed.before) == ("u29", "heavy", ["Film a", "Film b", "Film c"])
    assert changed.new == {"Film <", "Film d"}
    assert same.new == set()


def test_settings_and_plain_metrics_side_by_side(difference):
    assert difference.settings == [("epochs", "2", "3")]
    assert difference.metrics == [("time/auc", 0.8, None), ("time/uauc", None, 0.9)]


def test_what_cannot_be_compared_is_said_and_not_guessed():
    for other, remark in (
        (
            snapshot(rows="elsewhere"),
            "Differences have no intervals: the two versions were not tested on the same rows",
        ),
        (None, "films/2 left no values per unit"),
    ):
        difference = comparing.compare(*sides(b=other))
        assert any(line.startswith(remark) for line in difference.remarks)
        assert difference.overall == difference.segments == []
        assert difference.verdict == ["The two cannot be judged unit by unit; see the remarks."]
    other = snapshot(np.full(USERS, 0.5), USERS, answers=answers({"u3": "abc"}))
    assert "the two versions were asked about different inputs" in comparing.compare(*sides(b=other)).remarks[-1]


def test_movement_is_that_of_each_prototype_from_its_origin():
    first = world.partition().bank
    second = refined(first, 1)
    a, b = (Side(name, "", {}, {}, bank=bank) for name, bank in (("a", first), ("b", second)))
    movement = comparing.compare(a, b).movement
    assert movement.layers == ["0", "2"]
    assert movement.origin == second.origin.tolist()
    moved = (second.prototypes - first.prototypes[second.origin]).layer_norms()
    weights = [scale * size**0.5 for scale, size in zip(second.weight_scales.tolist(), (30, 18), strict=True)]
    assert np.allclose(movement.shares, moved.numpy() / weights, rtol=1e-6)
    third = refined(second, 2)
    origin = comparing.compare(a, Side("c", "", {}, {}, bank=third)).movement.origin
    assert origin[:4] == [0, 1, 2, 3], "the nearest, as nothing else is known of a version further off"
    assert comparing.largest_movement(first, second)["0"] == pytest.approx(max(row[0] for row in movement.shares))
    settings = {name: getattr(first, name) for name in PrototypeBank.__dataclass_fields__}
    foreign = PrototypeBank(**settings | {"prototypes": type(first.prototypes)(first.prototypes.layers, "b" * 64)})
    difference = comparing.compare(a, Side("d", "", {}, {}, bank=foreign))
    assert difference.movement is None
    assert "edits of different hosts" in difference.remarks[0]


LINKS = ("src", "href", "action")


class Outline(HTMLParser):
    """What a page links to, and whether it is whole."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.links, self.outside = [], set(), set(), []
        self.feed(text)

    def handle_startendtag(self, tag, attrs):
        self.outside += [value for name, value in attrs if name in LINKS and not value.startswith("#")]

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if "id" in values:
            self.ids.add(values["id"])
        if tag == "a":
            self.links.add(values["href"].removeprefix("#"))
        self.handle_startendtag(tag, attrs)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_self_contained_and_escaped(difference):
    text = pages.comparison(difference, "user")
    outline = Outline(text)
    assert outline.open == []
    assert outline.links - {"main"} <= outline.ids
    assert {"overall", "segments", "causes", "moves", "items", "examples", "settings", "metrics"} <= outline.ids
    assert outline.outside == []
    assert "<script" not in text
    assert "Film &lt;" in text
    assert "+0.0500 [" in text


def test_a_page_of_versions_that_cannot_be_compared():
    text = pages.comparison(comparing.compare(*sides(b=None)), "unit")
    assert "left no values per unit" in text
    assert Outline(text).links == {"main", "settings", "metrics"}


def test_a_comparison_is_kept_in_mlflow_and_told_on_the_version(workplace, capsys):
    for made in (BEFORE, AFTER):
        register(made)
    assert main(["compare", f"{MODEL}/1", f"models:/{MODEL}/2", "--page", "diff.html", "--json"]) == 0
    captured = capsys.readouterr()
    said = json.loads(captured.out)
    assert said["overall"][0]["better"] == "B"
    assert "Gain of B over A, all users" in captured.err
    assert (workplace / "diff.html").read_text().startswith("<!doctype html>")
    client = mlflow.MlflowClient()
    run = client.get_run(said["run_id"])
    assert run.info.run_name == f"{MODEL}/2 against {MODEL}/1"
    assert run.data.metrics["time/ndcg_10_gain"] == pytest.approx(0.05)
    assert run.data.metrics["time/light/ndcg_10_gain_high"] == pytest.approx(-0.05)
    assert run.data.metrics["moved"] == 1
    assert "version 2 is better" in run.data.tags["mlflow.note.content"]
    table = mlflow.load_table("tables/gains.json", [said["run_id"]])
    assert table["better"].tolist()[:2] == ["B", "A"]
    assert {file.path for file in client.list_artifacts(said["run_id"])} == {
        "comparison.html",
        "comparison.json",
        "tables",
    }
    tags = client.get_model_version(MODEL, "2").tags
    assert tags["compared.with"] == f"{MODEL}/1"
    assert tags["compared.run"] == said["run_id"]
    assert "version 2 is better" in tags["compared.verdict"]
    client.update_model_version(MODEL, "2", description=client.get_model_version(MODEL, "2").description + "\n\nMine.")
    assert main(["compare", f"{MODEL}/1", f"{MODEL}/2"]) == 0
    paragraphs = client.get_model_version(MODEL, "2").description.split("\n\n")
    assert paragraphs[0].startswith("**Against persona-films/1:** Over all 30 users: version 2 is better")
    assert paragraphs[1:] == ["Mine."], "the verdict is replaced, and what people wrote stays"


def test_banks_runs_and_aliases_are_found_by_name(workplace):
    bank = world.partition().bank
    register_bank(bank, BEFORE)
    client = mlflow.MlflowClient()
    client.set_registered_model_alias(BANKS, "champion", "1")
    for name in (f"{BANKS}@champion", BANKS, f"models:/{BANKS}/1"):
        found = comparing.side(client, name)
        assert (found.label, found.bank.version) == (f"{BANKS}/1", bank.version)
    run_id = client.get_model_version(BANKS, "1").run_id
    for name in (run_id, f"runs:/{run_id}"):
        assert comparing.sides(client, name, BANKS)[0].snapshot.units.equals(BEFORE.units)
    with pytest.raises(ConfigError, match="there is no run 0000"):
        comparing.side(client, "0" * 32)


def test_metrics_of_a_comparison_have_names_that_mlflow_groups(difference):
    assert {name for name in comparison_log.metrics(difference) if not name.endswith(("_low", "_high"))} == {
        "time/ndcg_10_gain", "time/light/ndcg_10_gain", "time/medium/ndcg_10_gain", "time/heavy/ndcg_10_gain", "moved",
    }  # fmt: skip


def test_comparing_leaves_the_experiment_of_the_task_alone(workplace):
    tracking.connect("films")
    register(BEFORE)
    register(AFTER)
    client = mlflow.MlflowClient()
    a, b = comparing.sides(client, f"{MODEL}/1", f"{MODEL}/2")
    run_id = comparison_log.log(client, a, b, comparing.compare(a, b))
    assert client.get_experiment(client.get_run(run_id).info.experiment_id).name == "comparisons"
