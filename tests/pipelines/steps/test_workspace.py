import json
from pathlib import Path

import pytest

from persona.errors import ConfigError, DataError, FormatError
from pipelines.steps.workspace import Workspace
from recsys.config import RecsysConfig
from recsys.task import RECSYS
from tests.recsys.toy import walks
from vision.task import VISION


@pytest.fixture
def space(tmp_path):
    return Workspace(tmp_path / "work")


def toml(folder: Path, text: str | bytes) -> Path:
    path = folder / "settings.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_options_override_a_file_overrides_the_step_before_overrides_defaults(space, tmp_path):
    assert space.settings(RECSYS, {}) == RecsysConfig()
    space.remember(RecsysConfig(epochs=5, seed=5, host="din", dropout=0.5))
    file = toml(tmp_path, "epochs = 6\nseed = 6\nhost = 'gru4rec'\n")
    settings = space.settings(RECSYS, {"epochs": 7, "seed": None}, file)
    assert settings == RecsysConfig(epochs=7, seed=6, host="gru4rec", dropout=0.5)
    assert space.settings(RECSYS, {}) == RecsysConfig(epochs=5, seed=5, host="din", dropout=0.5), (
        "asking changes nothing"
    )


def test_a_setting_may_be_given_as_zero_or_false(space):
    space.remember(RecsysConfig(sequences=True, min_epochs=4, dropout=0.5))
    settings = space.settings(RECSYS, {"sequences": False, "min_epochs": 0, "dropout": 0.0})
    assert (settings.sequences, settings.min_epochs, settings.dropout) == (False, 0, 0.0)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("epoch = 3\n", "unknown setting 'epoch': did you mean 'epochs'"),
        ("epochs = 'three'\n", "epochs is 'three', but it has to be a whole number"),
        ("[recsys]\nepochs = 3\n", "unknown setting 'recsys'"),
        ("epochs = \n", r"settings.toml is not valid TOML \(.*line 1.*\): write one `name = value` a line"),
        (b"host = '\xff'\n", "settings.toml is not valid TOML .*: write one"),
    ],
)
def test_a_broken_settings_file_is_one_sentence(space, tmp_path, text, sentence):
    with pytest.raises(ConfigError, match=sentence):
        space.settings(RECSYS, {}, toml(tmp_path, text))


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_a_settings_file_that_cannot_be_read_is_named(space, tmp_path, name):
    with pytest.raises(ConfigError, match=r"cannot be read \(.*\): give the path of a TOML file"):
        space.settings(RECSYS, {}, tmp_path / name)


def test_damaged_memories_are_refused(space):
    space.remember(RecsysConfig())
    (space.root / "settings.json").write_text("{", encoding="utf-8")
    with pytest.raises(FormatError, match="not valid JSON"):
        space.settings(RECSYS, {})


def test_every_step_has_a_place_of_its_own(space):
    places = {space.prepared, space.cells, space.bundle, space.prototypes}
    places |= {space.replay, space.comparison(RECSYS, "time"), space.comparison(RECSYS, "paper")}
    assert len(places) == 7
    assert {place.parent for place in places} == {space.root}


def test_prepared_data_is_found_again(space):
    with pytest.raises(DataError, match=f"run `persona recsys prepare --work {space.root}"):
        space.data(RECSYS)
    walks().save(space.prepared)
    assert space.data(RECSYS).digest == walks().digest


def test_settings_are_remembered_as_readable_json(space):
    space.remember(RecsysConfig(seed=9))
    assert json.loads((space.root / "settings.json").read_text())["seed"] == 9


def test_what_is_taken_over_is_what_is_neither_given_nor_the_default(space, tmp_path):
    assert space.taken_over(RECSYS, {}) == {}
    space.remember(RecsysConfig(host="gru4rec", dim=8, epochs=3))
    assert space.taken_over(RECSYS, {}) == {"host": "gru4rec", "dim": 8, "epochs": 3}
    assert space.taken_over(RECSYS, {"host": "din", "dim": None}, toml(tmp_path, "epochs = 5\n")) == {"dim": 8}


def test_ranking_the_whole_catalogue_is_monitored_by_ranks_unless_asked_otherwise(space):
    assert space.settings(RECSYS, {"protocol": "full"}).monitor == "ndcg_10"
    space.remember(RecsysConfig(monitor="auc"))
    assert space.settings(RECSYS, {"protocol": "full"}).monitor == "ndcg_10", "what another protocol selected by"
    assert space.settings(RECSYS, {"protocol": "full", "monitor": "hr_5"}).monitor == "hr_5"
    assert space.settings(RECSYS, {"protocol": "paper"}).monitor == "auc"
    with pytest.raises(ConfigError, match="monitor 'uauc' cannot select epochs under protocol full"):
        space.settings(RECSYS, {"protocol": "full", "monitor": "uauc"})
    assert RecsysConfig().under_protocol("full") == RecsysConfig(protocol="full", monitor="ndcg_10")
    assert RecsysConfig(monitor="mrr").under_protocol("full").monitor == "mrr"
    assert RecsysConfig().under_protocol("paper") == RecsysConfig(protocol="paper")


def test_what_prepared_data_asks_for_is_taken_up(space):
    space.suggest(host="compact", host_groups="clean")
    config = space.settings(VISION, {"epochs": 3, "host": None})
    assert (config.host, config.host_groups, config.epochs) == ("compact", "clean", 3)
    space.remember(config)
    assert space.settings(VISION, {"host": "resnet18"}).epochs == 3
    assert space.comparison(VISION, config.protocol).name == "comparison.json"
    with pytest.raises(DataError, match="persona vision prepare"):
        space.data(VISION)


def test_every_host_has_a_lineage_of_its_own(space):
    one, other = (space.lineage(digest * 64) for digest in "ab")
    assert one.root != other.root
    assert {one.root.parent, other.root.parent} == {space.prototypes}
    assert (one.head, one.host) == ("", "a" * 64)


def test_a_preset_or_host_that_is_given_brings_its_own_training(space):
    space.remember(RecsysConfig(preset="paper", epochs=5, negatives=7))
    assert space.settings(RECSYS, {}) == RecsysConfig(preset="paper", epochs=5, negatives=7)
    assert space.settings(RECSYS, {"preset": "modern"}) == RecsysConfig(epochs=5, negatives=7)
    assert space.taken_over(RECSYS, {}) == {"preset": "paper", "epochs": 5, "negatives": 7}
    space.remember(RecsysConfig())
    assert space.settings(RECSYS, {"host": "din"}) == RecsysConfig(host="din")


@pytest.mark.parametrize(
    ("source", "given", "name"),
    [
        ("movielens-small", "", "movielens-small"),
        ("data/Shop Log 2.csv", "", "shop-log-2"),
        ("events.2024.csv.gz", "", "events-2024"),
        ("logs/*.parquet", "", "logs"),
        ("*.parquet", "", "data"),
        ("events.csv", "My Shop!", "my-shop"),
    ],
)
def test_data_is_called_like_its_file_or_as_it_is_asked_for(space, source, given, name):
    assert space.name_of(source, given) == name


def test_a_name_that_was_given_stays_until_other_data_comes(space):
    assert (space.name, RECSYS.registered(space.name)) == ("", "persona-recsys"), "prepared by an earlier release"
    space.call(space.name_of("events.csv", "shop"), "events.csv")
    assert space.name_of("events.csv") == space.name == "shop"
    assert space.name_of("films.csv") == "films"
    space.call("Other Shop")
    assert space.name_of("events.csv") == "other-shop"
    assert RECSYS.banks(space.name) == "persona-recsys-other-shop-prototypes"


def test_a_name_without_letters_is_refused(space):
    with pytest.raises(ConfigError, match="--name '!' has neither letters nor digits"):
        space.call("!")
