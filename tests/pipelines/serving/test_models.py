"""Versions are exchanged whole, and only for ones that answer."""

import json
import shutil

import pytest

from persona.errors import ConfigError, DataError, FormatError
from pipelines.serving.errors import Refusal
from pipelines.serving.models import REMEMBERED, Models
from pipelines.serving.recsys.servable import RecommenderTask
from pipelines.serving.sources import FolderSource, RegistrySource, source_of
from tests.pipelines.serving.toy import bank_version, write_bundle


def put(folder, seed=0, **options):
    """Put another bundle in the place of the one in ``folder``, as a release does."""
    new = write_bundle(folder.with_name("new"), seed, **options)
    if folder.exists():
        shutil.rmtree(folder)
    new.rename(folder)
    return folder


@pytest.fixture
def folder(tmp_path):
    return put(tmp_path / "bundle")


@pytest.fixture
def models(folder):
    outcomes = []
    made = Models(RecommenderTask(), FolderSource(folder), outcomes.append)
    made.outcomes = outcomes
    return made


def test_there_is_no_answer_before_the_first_version(models):
    assert not models.loaded
    with pytest.raises(Refusal) as refused:
        models.current()
    assert refused.value.status == 503


def test_a_newer_version_takes_the_place_of_the_older(models, folder):
    assert models.refresh()
    first = models.current()
    assert not models.refresh(), "nothing is newer"
    assert models.current() is first
    put(folder, 1)
    assert models.refresh()
    assert models.current().versions.bank == bank_version(1)
    assert models.current().versions.version != first.versions.version
    assert models.bank()["version"] == bank_version(1)
    assert models.bank(bank_version(0)[:8])["version"] == bank_version(0), "the last ones stay known"
    assert models.outcomes == ["loaded", "loaded"]


def test_only_the_last_banks_are_remembered(models, folder):
    for seed in range(REMEMBERED + 1):
        put(folder, seed)
        models.refresh()
    assert models.bank(bank_version(0)) is None
    assert models.bank(bank_version(1)) is not None


@pytest.mark.parametrize("damage", ["poison", "graph", "header", "items", "gone", "empty", "truncated"])
def test_a_version_that_does_not_answer_is_never_used(models, folder, damage):
    models.refresh()
    before = models.current()
    put(folder, 1, poison=damage == "poison")
    path = {"graph": "compiled/rank.onnx", "header": "bundle.json", "items": "items.parquet"}.get(damage)
    if path:
        (folder / path).write_bytes(b"{}" if damage == "header" else b"nonsense")
    if damage == "gone":
        shutil.rmtree(folder)
    if damage == "empty":
        (folder / "bundle.json").write_text("")
    if damage == "truncated":
        (folder / "bundle.json").write_text((folder / "bundle.json").read_text()[:-20])
    assert not models.refresh()
    assert models.current() is before
    assert models.refused
    assert models.outcomes[-1] == "refused"
    assert not models.refresh(), "it is tried again, and fails again"
    put(folder, 2)
    assert models.refresh()
    assert (models.refused, models.current().versions.bank) == ("", bank_version(2))


def test_graphs_that_fit_their_digests_but_not_each_other_are_refused(models, folder):
    models.refresh()
    put(folder, 1)
    header = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps(header | {"bank_version": "77" * 32}))
    assert not models.refresh()
    assert "another prototype bank" in models.refused


def test_a_folder_exchanged_while_it_is_read_is_read_again(models, folder, monkeypatch):
    load = models.task.load

    def slowly(*arguments):
        loaded = load(*arguments)
        monkeypatch.undo()
        put(folder, 1)
        return loaded

    models.refresh()
    put(folder, 2)
    monkeypatch.setattr(models.task, "load", slowly)
    assert not models.refresh()
    assert models.current().versions.bank == bank_version(0)
    assert models.refresh()
    assert models.current().versions.bank == bank_version(1)


def test_the_first_version_has_to_be_sound(tmp_path):
    with pytest.raises(DataError, match="holds no bundle"):
        Models(RecommenderTask(), FolderSource(tmp_path / "nothing")).refresh()
    with pytest.raises(FormatError, match="cannot answer at level edit"):
        Models(RecommenderTask(), FolderSource(put(tmp_path / "bundle", poison=True))).refresh()


@pytest.mark.parametrize(
    ("uri", "name", "alias", "number"),
    [("models:/persona-recsys@champion", "persona-recsys", "champion", ""), ("models:/m/3", "m", "", "3")],
)
def test_addresses_of_registered_models(uri, name, alias, number):
    source = source_of(uri)
    assert isinstance(source, RegistrySource)
    assert (source.name, source.alias, source.number) == (name, alias, number)


@pytest.mark.parametrize("uri", ["models:/", "models:/m", "models:/m@", "models:/m/latest"])
def test_addresses_that_name_no_version_are_refused(uri):
    with pytest.raises(ConfigError, match="models:/NAME@ALIAS"):
        source_of(uri)
