"""The prototype bank in a bundle: serving levels, what they fall back to, and banks that are refused."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from persona.answering import NO_BANK, NO_EDITOR
from persona.errors import ConfigError, FormatError, MismatchError
from persona.prototypes import fit_bank, receive
from persona.wire import LEVELS, NOT_FINITE, NOT_TRUSTED
from recsys.serving.compile import compile_model
from recsys.serving.graphs import EDIT
from recsys.serving.recommender import NO_ITEM, Ask
from recsys.serving.release import Release
from tests.recsys.toy import ITEMS, personalised

IDS = [str(100 + i) for i in range(1, ITEMS + 1)]
HISTORY = ["105", "130", "105"]
HISTORIES = [["101"], HISTORY, [], ["nothing", "known"], IDS[:12], ["x", "130"]]


def make(kind: str = "gru4rec", bank: bool = True, seed: int = 0) -> Release:
    model = personalised(kind, learned=True)
    for head in model.editor.heads:
        for parameter in head.parameters():
            torch.nn.init.normal_(parameter, std=0.3 + 0.1 * seed)
    plain = Release(model, IDS)
    if not bank:
        return plain
    contexts = plain.context_of([[IDS[i], IDS[(3 * i) % ITEMS]] for i in range(ITEMS)])
    return Release(model, IDS, bank=fit_bank(model.editor, plain.codes(contexts), 3).bank)


@pytest.fixture(scope="module")
def release():
    return make().compile()


@pytest.fixture(scope="module")
def recommender(release):
    return release.recommender()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    make().save(folder)
    return folder


@pytest.fixture
def bundle(saved, tmp_path):
    """A copy to be damaged."""
    return shutil.copytree(saved, tmp_path / "bundle")


@pytest.fixture(scope="module", params=[(torch.nan, NOT_FINITE), (1e4, NOT_TRUSTED)], ids=["nan", "huge"])
def poisoned(request, release):
    """Answers with an editor whose whole edits must not be used, though its codes are sound, and why not."""
    value, reason = request.param
    harmful = make()
    with torch.no_grad():
        harmful.model.editor.heads[0].bias.bias.fill_(value)
    graph = compile_model(harmful.model)[EDIT]
    made = release.recommender()
    made.model = type(made.model)({**release.compiled, EDIT: graph}, made.model.length)
    return made, reason


def ids(answer):
    return [item.item_id for item in answer.items]


@pytest.mark.parametrize("level", ["prototype", "basis", "edit"])
def test_an_answer_ranks_by_what_a_device_applies(release, recommender, level):
    answer = recommender.recommend(HISTORY, k=5, level=level)
    context = release.context_of([HISTORY])
    codes = release.codes(context)
    sent = release.server.messages(codes, "full" if level == "edit" else level)[0]
    edit = receive(release.bank, sent, "full" if level == "edit" else level)
    host = release.model.host
    with torch.no_grad():
        scores = host.score_catalogue(host.encode(context), edit)[0]
    scores[[5, 30]] = -torch.inf
    assert ids(answer) == [IDS[i - 1] for i in scores.argsort(descending=True)[:5]]
    assert answer.edit_norm == pytest.approx(edit.norm().item(), rel=1e-4)
    nearest = int(release.server.assign(codes)[0])
    assert answer.prototype == nearest
    assert (answer.level, answer.bank, answer.fallback) == (level, release.bank.version, "")


def test_levels_come_nearer_to_the_whole_edit(recommender):
    def scores(level):
        answers = recommender.recommend_many([[item] for item in IDS], k=ITEMS, level=level)
        return torch.tensor([[score for _, score in sorted((i.item_id, i.score) for i in a.items)] for a in answers])

    def error(level):
        return float((scores(level) - scores("edit")).square().sum())

    assert error("host") > error("prototype") > error("basis") > error("edit") == 0


def test_the_host_needs_no_excuse_and_the_unknown_get_the_host(recommender):
    assert recommender.recommend(HISTORY, level="host").fallback == ""
    for level in LEVELS[1:]:
        answers = recommender.recommend_many(HISTORIES, level=level)
        assert [a.level for a in answers] == [level, level, "host", "host", level, level]
        assert [bool(a.fallback) for a in answers] == [False, False, True, True, False, False]
        assert answers[2].fallback == NO_ITEM
        assert answers[2].items == recommender.recommend([], level="host").items


def test_many_are_answered_like_one_at_a_time(recommender):
    for level in LEVELS:
        for history, answer in zip(HISTORIES, recommender.recommend_many(HISTORIES, k=6, level=level), strict=True):
            alone = recommender.recommend(history, k=6, level=level)
            assert (ids(answer), answer.level, answer.prototype) == (ids(alone), alone.level, alone.prototype)


def test_without_a_bank_or_an_editor_the_host_answers_and_says_so():
    plain = make(bank=False)
    assert plain.server is None
    answers = plain.recommender()
    for level in ("prototype", "basis"):
        answer = answers.recommend(HISTORY, level=level)
        assert (answer.level, answer.fallback, answer.bank) == ("host", NO_BANK, "")
        assert answer.items == answers.recommend(HISTORY, level="host").items
    assert answers.recommend(HISTORY).level == "edit"
    alone = Release(personalised(editor=False), IDS)
    assert alone.recommender().recommend(HISTORY).fallback == NO_EDITOR
    with pytest.raises(ConfigError, match="this model is a host without one"):
        alone.codes(alone.context_of([HISTORY]))


def test_an_edit_that_must_not_be_used_falls_back_to_its_prototype(recommender, poisoned):
    answers, reason = poisoned
    found = answers.answer([Ask(HISTORY), Ask([]), Ask(HISTORY, level="prototype")])
    assert [a.level for a in found] == ["prototype", "host", "prototype"]
    assert [a.fallback for a in found] == [reason, NO_ITEM, ""]
    assert found[0].items == found[2].items == recommender.recommend(HISTORY, level="prototype").items


@pytest.mark.parametrize(("value", "reason"), [(np.inf, NOT_FINITE), (1e4, NOT_TRUSTED)])
def test_where_prototypes_do_harm_the_host_answers(release, recommender, value, reason):
    made = release.recommender()
    made.tables.prototypes = np.full_like(made.tables.prototypes, value)
    for level in ("prototype", "basis"):
        answer = made.recommend(HISTORY, level=level)
        assert (answer.level, answer.fallback, answer.edit_norm) == ("host", reason, 0.0)
        assert answer.items == recommender.recommend(HISTORY, level="host").items


def test_codes_that_are_not_finite_choose_no_prototype(release, monkeypatch):
    made = release.recommender()
    sound = made.model.contexts
    monkeypatch.setattr(
        made.model, "contexts", lambda inputs: replace(sound(inputs), codes=np.full_like(sound(inputs).codes, np.nan))
    )
    for level in ("prototype", "basis", "edit"):
        answer = made.recommend(HISTORY, level=level)
        assert (answer.level, answer.fallback, answer.prototype) == ("host", NOT_FINITE, None)


def test_a_bank_needs_its_own_editor(release):
    with pytest.raises(ConfigError, match="a prototype bank needs the editor"):
        Release(personalised(editor=False), IDS, bank=release.bank)
    with pytest.raises(MismatchError, match="was made with the editor"):
        Release(make(bank=False, seed=1).model, IDS, bank=release.bank)


@pytest.mark.parametrize("name", ["bank.json", "bank.safetensors", "prototypes.safetensors", "basis.safetensors"])
def test_a_damaged_bank_is_found(bundle, name):
    path = bundle / "bank" / name
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(FormatError, match=str(bundle / "bank")):
        Release.load(bundle)
    path.unlink()
    with pytest.raises(FormatError, match=name):
        Release.load(bundle)


def test_banks_of_other_bundles_are_refused(bundle, tmp_path):
    make("sasrec").save(tmp_path / "of another host")
    shutil.rmtree(bundle / "bank")
    shutil.copytree(tmp_path / "of another host" / "bank", bundle / "bank")
    with pytest.raises(MismatchError, match="was made for the host"):
        Release.load(bundle)


def test_another_version_of_the_bank_is_refused(bundle, tmp_path):
    changed = make()
    changed = Release(changed.model, IDS, bank=replace(changed.bank, parent=changed.bank.version))
    changed.save(tmp_path / "later")
    shutil.rmtree(bundle / "bank")
    shutil.copytree(tmp_path / "later" / "bank", bundle / "bank")
    with pytest.raises(MismatchError, match="was released with"):
        Release.load(bundle)


def test_a_bundle_of_the_first_format_has_no_bank_and_loads(bundle):
    path = bundle / "bundle.json"
    header = json.loads(path.read_text())
    del header["bank_version"]
    path.write_text(json.dumps(header | {"version": 1}))
    shutil.rmtree(bundle / "bank")
    old = Release.load(bundle)
    assert old.bank is None
    assert old.recommender().recommend(HISTORY).level == "edit"
