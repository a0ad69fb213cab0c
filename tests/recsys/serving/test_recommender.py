import json
import pickle
import shutil

import polars as pl
import pytest
import torch

from persona.errors import ConfigError, DataError, FormatError, MismatchError
from recsys.serving.recommender import Recommender
from tests.recsys.toy import ITEMS, personalised

IDS = [str(100 + i) for i in range(1, ITEMS + 1)]
TITLES = [None if i == 1 else f"Film {i}" for i in range(1, ITEMS + 1)]
INFO = {"settings": {"seed": 0}, "metrics": {"time/uauc": 0.5}, "parent": None}
HISTORIES = [["101"], ["105", "130", "105"], [], ["nothing", "known"], [str(101 + i) for i in range(12)], ["x", "130"]]


def make(seed: int = 0, **options: object) -> Recommender:
    model = personalised(**{"learned": True, **options})  # type: ignore[arg-type]
    if seed:
        torch.manual_seed(seed)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return Recommender(model, IDS, TITLES, INFO)


@pytest.fixture(scope="module")
def recommender():
    return make()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    make().save(folder)
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A bundle of the same shape with another host, another editor and another vocabulary."""
    folder = tmp_path_factory.mktemp("bundles") / "other"
    unlike = make(seed=1)
    Recommender(unlike.model, IDS[::-1], TITLES, INFO).save(folder)
    return folder


@pytest.fixture
def bundle(saved, tmp_path):
    """A copy to be damaged."""
    return shutil.copytree(saved, tmp_path / "bundle")


def ids(answer):
    return [item.item_id for item in answer.items]


@pytest.mark.parametrize("kind", ["din", "gru4rec", "sasrec"])
@pytest.mark.parametrize("editor", [True, False])
def test_a_loaded_bundle_gives_the_same_answers_bit_for_bit(kind, editor, tmp_path):
    before = make(kind=kind, editor=editor)
    before.save(tmp_path / "bundle")
    after = Recommender.load(tmp_path / "bundle")
    for level in ("edit", "host"):
        assert after.recommend_many(HISTORIES, 7, level=level) == before.recommend_many(HISTORIES, 7, level=level)
    assert (after.info, after.item_ids, after.titles) == (INFO, IDS, TITLES)
    assert after.host_digest == before.host_digest
    assert (after.model.editor is None) == (not editor)


def test_saving_replaces_a_bundle_as_a_whole(tmp_path):
    make(editor=True).save(tmp_path / "bundle")
    make(editor=False).save(tmp_path / "bundle")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]
    assert not (tmp_path / "bundle" / "editor.safetensors").exists()
    Recommender.load(tmp_path / "bundle")


def test_the_answer_is_the_ranking_of_the_model(recommender):
    history = [5, 30, 5]
    answer = recommender.recommend([IDS[i - 1] for i in history], k=4)
    context = recommender.context([history])
    scores = recommender.model.score_catalogue(context)[0]
    scores[[0, *history]] = -torch.inf
    best = scores.argsort(descending=True)[:4]
    assert ids(answer) == [IDS[i - 1] for i in best]
    assert [item.score for item in answer.items] == pytest.approx(scores[best].tolist(), abs=1e-5)
    assert [item.title for item in answer.items] == [TITLES[i - 1] for i in best]
    assert answer.level == "edit"
    assert answer.edit_norm == pytest.approx(recommender.model.edit(context).norm().item(), rel=1e-5)


def test_the_level_decides_who_answers(recommender):
    edited, host = (recommender.recommend(["105", "130"], level=level) for level in ("edit", "host"))
    plain = Recommender(make(editor=False).model, IDS).recommend(["105", "130"])
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


def test_only_the_last_items_of_a_long_history_count(recommender):
    length = recommender.model.host.config.max_length
    long, short = IDS[:12], IDS[12 - length : 12]
    assert recommender.recommend(long, seen=True) == recommender.recommend(short, seen=True)
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


def test_a_bundle_holds_nothing_that_is_unpickled(saved, monkeypatch):
    assert {path.suffix for path in saved.iterdir()} == {".safetensors", ".parquet", ".json"}
    for path in saved.iterdir():
        content = path.read_bytes()
        assert not content.startswith((b"\x80", b"PK")), "a pickle, or a zip file of pickles"
        assert b"__reduce__" not in content

    def refuse(*args, **kwargs):
        raise AssertionError("something was unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    assert len(Recommender.load(saved).recommend(["105"]).items) == 10


def edit_json(bundle, **changes):
    path = bundle / "bundle.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def inner(bundle, part, **changes):
    edit_json(bundle, **{part: {**json.loads((bundle / "bundle.json").read_text())[part], **changes}})


FILES = ("bundle.json", "host.safetensors", "editor.safetensors", "items.parquet")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(bundle, name):
    (bundle / name).unlink()
    kind = DataError if name == "bundle.json" else FormatError
    with pytest.raises(kind, match=f"{bundle}.*{name}"):
        Recommender.load(bundle)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_a_truncated_file_is_named(bundle, name, share):
    content = (bundle / name).read_bytes()
    (bundle / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(FormatError, match=str(bundle / name)):
        Recommender.load(bundle)


@pytest.mark.parametrize("name", ["host.safetensors", "editor.safetensors"])
def test_a_flipped_bit_of_the_weights_is_found(bundle, name):
    content = bytearray((bundle / name).read_bytes())
    content[-5] ^= 1
    (bundle / name).write_bytes(content)
    with pytest.raises(FormatError, match=f"{bundle / name} is damaged"):
        Recommender.load(bundle)


@pytest.mark.parametrize("name", ["host.safetensors", "editor.safetensors", "items.parquet"])
def test_a_file_of_another_bundle_is_refused(bundle, other, name):
    shutil.copy(other / name, bundle / name)
    with pytest.raises((MismatchError, FormatError), match=str(bundle)):
        Recommender.load(bundle)


def test_an_editor_of_another_host_is_a_mismatch(bundle, other):
    shutil.copy(other / "editor.safetensors", bundle / "editor.safetensors")
    with pytest.raises(MismatchError, match=r"editor\.safetensors belongs to another host"):
        Recommender.load(bundle)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda b: (b / "bundle.json").write_text("[]"), "format None version None"),
        (lambda b: edit_json(b, format="persona-edit"), "has format 'persona-edit' version 2"),
        (lambda b: edit_json(b, version=99), "version 99, but 'persona-recsys-bundle' version 1 or 2 is needed"),
        (lambda b: edit_json(b, host=None), "bundle.json"),
        (lambda b: edit_json(b, host={"kind": "gru4rec"}), "bundle.json.*'n_items' is missing"),
        (lambda b: inner(b, "host", kind="gru5rec"), "bundle.json.*unknown host 'gru5rec'"),
        (lambda b: inner(b, "host", dim=16), "host.safetensors does not fit the settings"),
        (lambda b: inner(b, "host", dim="wide"), "bundle.json.*dim has to be a whole number"),
        (lambda b: inner(b, "host", n_items=ITEMS + 1), "host.safetensors does not fit the settings"),
        (lambda b: edit_json(b, editor={"width": 8}), "bundle.json"),
        (lambda b: edit_json(b, editor=3), "bundle.json"),
        (lambda b: inner(b, "editor", width=16), "editor.safetensors does not fit the settings"),
        (lambda b: inner(b, "editor", colour=1), "bundle.json.*unknown editor setting 'colour'"),
        (lambda b: pl.DataFrame({"item_id": IDS[:-1]}).write_parquet(b / "items.parquet"), "items.parquet"),
        (lambda b: pl.DataFrame({"id": IDS}).write_parquet(b / "items.parquet"), "items.parquet"),
    ],
)
def test_a_damaged_bundle_is_a_sentence_that_names_the_file(bundle, damage, sentence):
    damage(bundle)
    with pytest.raises(FormatError, match=sentence) as refused:
        Recommender.load(bundle)
    assert str(bundle) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "key", ["host", "editor", "host_digest", "editor_digest", "bank_version", "items_digest", "info"]
)
def test_a_missing_entry_is_named(bundle, key):
    path = bundle / "bundle.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != key}))
    with pytest.raises(FormatError, match=f"bundle.json lacks '{key}'"):
        Recommender.load(bundle)


def test_a_folder_without_a_bundle_says_what_makes_one(tmp_path):
    for place in (tmp_path, tmp_path / "missing"):
        with pytest.raises(DataError, match=rf"{place} holds no bundle .*run `persona recsys release` first"):
            Recommender.load(place)
