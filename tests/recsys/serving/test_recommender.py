"""The recommender as notebooks use it: one history or many in, ranked items out."""

import pickle

import pytest
import torch

from persona.errors import ConfigError, DataError
from recsys.serving.recommender import Recommender
from recsys.serving.release import Release
from tests.recsys.toy import ITEMS, personalised

IDS = [str(100 + i) for i in range(1, ITEMS + 1)]
TITLES = [None if i == 1 else f"Film {i}" for i in range(1, ITEMS + 1)]
HISTORIES = [["101"], ["105", "130", "105"], [], ["nothing", "known"], [str(101 + i) for i in range(12)], ["x", "130"]]


def make(**options: object) -> Release:
    model = personalised(**{"learned": True, **options})  # type: ignore[arg-type]
    return Release(model, IDS, TITLES, {"settings": {"seed": 0}})


@pytest.fixture(scope="module")
def release():
    return make().compile()


@pytest.fixture(scope="module")
def recommender(release):
    return release.recommender()


@pytest.fixture(scope="module")
def saved(release, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    release.save(folder)
    return folder


def ids(answer):
    return [item.item_id for item in answer.items]


def test_a_loaded_bundle_gives_the_same_answers_bit_for_bit(recommender, saved):
    loaded = Recommender.load(saved)
    for level in ("edit", "host"):
        assert loaded.recommend_many(HISTORIES, 7, level=level) == recommender.recommend_many(HISTORIES, 7, level=level)


def test_the_answer_is_the_ranking_of_the_model(release, recommender):
    history = [5, 30, 5]
    answer = recommender.recommend([IDS[i - 1] for i in history], k=4)
    context = release.context([history])
    scores = release.model.score_catalogue(context)[0].detach()
    scores[[0, *history]] = -torch.inf
    best = scores.argsort(descending=True)[:4]
    assert ids(answer) == [IDS[i - 1] for i in best]
    assert [item.score for item in answer.items] == pytest.approx(scores[best].tolist(), abs=1e-5)
    assert [item.title for item in answer.items] == [TITLES[i - 1] for i in best]
    assert answer.level == "edit"
    assert answer.edit_norm == pytest.approx(release.model.edit(context).norm().item(), rel=1e-5)


def test_the_level_decides_who_answers(recommender):
    edited, host = (recommender.recommend(["105", "130"], level=level) for level in ("edit", "host"))
    plain = Release(make(editor=False).model, IDS).recommender().recommend(["105", "130"])
    assert (edited.level, host.level) == ("edit", "host")
    assert host.edit_norm == 0.0 < edited.edit_norm
    assert [item.score for item in edited.items] != [item.score for item in host.items]
    assert ids(host) == ids(plain)
    assert plain.level == "host", "a bundle without an editor cannot personalise"
    assert {item.title for item in plain.items} == {None}


@pytest.mark.parametrize("history", [[], ["nothing", "known"]])
def test_who_is_unknown_is_answered_by_the_host(recommender, history):
    answer = recommender.recommend(history, k=5)
    assert answer.level == "host"
    assert answer.edit_norm == 0.0
    assert answer.unknown == history
    assert answer.items == recommender.recommend([], k=5, level="host").items
    assert len(answer.items) == 5


def test_unknown_items_are_skipped_and_reported(recommender):
    answer = recommender.recommend(["a", "105", 7, "130", "b"], k=5)
    assert answer.unknown == ["a", 7, "b"]
    assert answer.items == recommender.recommend(["105", "130"], k=5).items


def test_ids_are_known_whatever_type_they_have(recommender):
    expected = recommender.recommend(["105", "130"])
    assert recommender.recommend([105, 130.0]) == recommender.recommend([" 105", "130 "]) == expected


def test_items_of_the_history_are_left_out_unless_asked_for(recommender):
    history = IDS[:12]
    fresh = recommender.recommend(history, k=ITEMS)
    assert set(ids(fresh)) == set(IDS) - set(history), "also those before the last T"
    again = recommender.recommend(history, k=ITEMS, seen=True)
    assert set(ids(again)) == set(IDS)
    assert [item for item in again.items if item.item_id not in history] == fresh.items


def test_excluded_items_are_left_out(recommender):
    first = ids(recommender.recommend(["105"], k=3))
    answer = recommender.recommend(["105"], k=3, exclude=[*first[:2], "unheard of"])
    assert answer.items[0].item_id == first[2]
    assert not set(first[:2]) & set(ids(answer))
    many = recommender.recommend_many([["105"], ["105"]], k=3, exclude=[first[:2], []])
    assert [ids(one) for one in many] == [ids(answer), first]


def test_only_the_last_items_of_a_long_history_count(release, recommender):
    length = release.model.host.config.max_length
    long, short = IDS[:12], IDS[12 - length : 12]
    whole, end = recommender.recommend(long, seen=True), recommender.recommend(short, seen=True)
    assert whole.items == end.items
    assert (whole.unread, end.unread) == (12 - length, 0)
    shorter = recommender.recommend(short[1:], seen=True)
    assert [i.score for i in shorter.items] != [i.score for i in recommender.recommend(short, seen=True).items]


def test_more_items_than_there_are_is_all_there_are(recommender):
    answer = recommender.recommend(["105", "130"], k=10 * ITEMS)
    assert len(answer.items) == len(set(ids(answer))) == ITEMS - 2
    scores = [item.score for item in answer.items]
    assert scores == sorted(scores, reverse=True)
    assert recommender.recommend(IDS, k=3).items == [], "who has seen everything"


def test_many_are_answered_like_one_at_a_time(recommender):
    together = recommender.recommend_many(HISTORIES, k=6)
    for history, answer in zip(HISTORIES, together, strict=True):
        alone = recommender.recommend(history, k=6)
        assert (ids(answer), answer.level, answer.unknown) == (ids(alone), alone.level, alone.unknown)
        assert [i.score for i in answer.items] == pytest.approx([i.score for i in alone.items], abs=1e-5)
        assert answer.edit_norm == pytest.approx(alone.edit_norm, rel=1e-5)
        assert answer.prototype == alone.prototype
    assert recommender.recommend_many([]) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"level": "edti"}, "unknown level 'edti': did you mean 'edit'"),
        ({"k": 0}, "k is 0, but at least one item has to be asked for"),
    ],
)
def test_wrong_arguments_are_refused(recommender, arguments, sentence):
    with pytest.raises(ConfigError, match=sentence):
        recommender.recommend(["105"], **arguments)


def test_a_text_is_no_history(recommender):
    """Its letters would pass for ids."""
    with pytest.raises(DataError, match="a history is a list of item ids, not the text '105'"):
        recommender.recommend("105")


def test_some_alone_can_be_wanted(recommender):
    answer = recommender.recommend(["105"], only=["105", "130", "unheard of", "117"])
    assert set(ids(answer)) == {"130", "117"}


def test_a_bundle_holds_nothing_that_is_unpickled(saved, monkeypatch):
    files = [path for path in saved.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".parquet", ".json", ".onnx"}
    for path in files:
        content = path.read_bytes()
        assert not content.startswith((b"\x80", b"PK")), "a pickle, or a zip file of pickles"
        assert b"__reduce__" not in content

    def refuse(*args, **kwargs):
        raise AssertionError("something was unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    assert len(Recommender.load(saved).recommend(["105"]).items) == 10
    Release.load(saved)
