"""The prototype bank in a bundle: serving levels, what they fall back to, and banks that are refused."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from persona.errors import ConfigError, FormatError, MismatchError
from persona.prototypes import fit_bank, receive
from recsys.serving import recommender as module
from recsys.serving.recommender import FALLBACKS, LEVELS, Recommender
from tests.recsys.toy import ITEMS, personalised

IDS = [str(100 + i) for i in range(1, ITEMS + 1)]
HISTORY = ["105", "130", "105"]
HISTORIES = [["101"], HISTORY, [], ["nothing", "known"], IDS[:12], ["x", "130"]]


def make(kind: str = "gru4rec", bank: bool = True, seed: int = 0) -> Recommender:
    model = personalised(kind, learned=True)
    for head in model.editor.heads:
        for parameter in head.parameters():
            torch.nn.init.normal_(parameter, std=0.3 + 0.1 * seed)
    plain = Recommender(model, IDS)
    if not bank:
        return plain
    contexts = plain.context_of([[IDS[i], IDS[(3 * i) % ITEMS]] for i in range(ITEMS)])
    return Recommender(model, IDS, bank=fit_bank(model.editor, plain.codes(contexts), 3).bank)


@pytest.fixture(scope="module")
def recommender():
    return make()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    make().save(folder)
    return folder


@pytest.fixture
def bundle(saved, tmp_path):
    """A copy to be damaged."""
    return shutil.copytree(saved, tmp_path / "bundle")


def poisoned(prototype: bool) -> Recommender:
    """A bundle whose every whole edit is not finite, though its codes are; its prototypes as well if asked for."""
    made = make()
    if prototype:
        bank = made.bank
        poison = bank.prototypes.map(lambda t: torch.full_like(t, torch.inf))
        object.__setattr__(bank, "prototypes", poison)
        object.__setattr__(bank, "bound", replace(bank.bound, kind="none"))
    with torch.no_grad():
        made.model.editor.heads[0].weight.bias.fill_(torch.nan)
    return made


def ids(answer):
    return [item.item_id for item in answer.items]


@pytest.mark.parametrize("kind", ["din", "gru4rec", "sasrec"])
def test_a_loaded_bundle_gives_the_same_answers_at_every_level(kind, tmp_path):
    before = make(kind)
    before.save(tmp_path / "bundle")
    after = Recommender.load(tmp_path / "bundle")
    assert after.bank.version == before.bank.version
    for level in LEVELS:
        assert after.recommend_many(HISTORIES, 7, level=level) == before.recommend_many(HISTORIES, 7, level=level)


@pytest.mark.parametrize("level", ["prototype", "basis", "edit"])
def test_an_answer_ranks_by_what_a_device_applies(recommender, level):
    answer = recommender.recommend(HISTORY, k=5, level=level)
    context = recommender.context_of([HISTORY])
    codes = recommender.codes(context)
    sent = recommender.server.messages(codes, "full" if level == "edit" else level)[0]
    edit = receive(recommender.bank, sent, "full" if level == "edit" else level)
    host = recommender.model.host
    with torch.no_grad():
        scores = host.score_catalogue(host.encode(context), edit)[0]
    scores[[5, 30]] = -torch.inf
    assert ids(answer) == [IDS[i - 1] for i in scores.argsort(descending=True)[:5]]
    assert answer.edit_norm == pytest.approx(edit.norm().item(), rel=1e-5)
    nearest = int(recommender.server.assign(codes)[0])
    assert answer.prototype == (None if level == "edit" else nearest)
    assert (answer.level, answer.bank, answer.fallback) == (level, recommender.bank.version, "")


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
        assert answers[2].fallback == module.NO_ITEM
        assert answers[2].items == recommender.recommend([], level="host").items


def test_many_are_answered_like_one_at_a_time(recommender):
    for level in LEVELS:
        for history, answer in zip(HISTORIES, recommender.recommend_many(HISTORIES, k=6, level=level), strict=True):
            alone = recommender.recommend(history, k=6, level=level)
            assert (ids(answer), answer.level, answer.prototype) == (ids(alone), alone.level, alone.prototype)


def test_without_a_bank_or_an_editor_the_host_answers_and_says_so():
    plain = make(bank=False)
    assert plain.server is None
    for level in ("prototype", "basis"):
        answer = plain.recommend(HISTORY, level=level)
        assert (answer.level, answer.fallback, answer.bank) == ("host", module.NO_BANK, "")
        assert answer.items == plain.recommend(HISTORY, level="host").items
    assert plain.recommend(HISTORY).level == "edit"
    alone = Recommender(personalised(editor=False), IDS)
    assert alone.recommend(HISTORY).fallback == module.NO_EDITOR
    with pytest.raises(ConfigError, match="a host without an editor, so its contexts have no codes"):
        alone.codes(alone.context_of([HISTORY]))


@pytest.mark.parametrize("level", ["basis", "edit"])
def test_an_edit_that_is_not_finite_is_never_used(recommender, level):
    harmful = poisoned(prototype=False)
    if level == "basis":  # what the device decodes, since the basis itself was made before the editor broke
        harmful.server._projected.fill_(torch.nan)
    answers = harmful.recommend_many([HISTORY, []], level=level)
    assert [a.level for a in answers] == ["prototype", "host"]
    assert [a.fallback for a in answers] == [module.NOT_FINITE, module.NO_ITEM]
    sound = recommender.recommend(HISTORY, level="prototype")
    assert (ids(answers[0]), answers[0].prototype) == (ids(sound), sound.prototype)


@pytest.mark.parametrize("level", ["prototype", "basis", "edit"])
def test_where_prototypes_do_harm_the_host_answers(recommender, level):
    answer = poisoned(prototype=True).recommend(HISTORY, level=level)
    assert (answer.level, answer.fallback, answer.edit_norm) == ("host", module.NOT_FINITE, 0.0)
    assert answer.prototype is None
    assert answer.items == recommender.recommend(HISTORY, level="host").items


def test_codes_that_are_not_finite_choose_no_prototype(recommender):
    broken = make()
    with torch.no_grad():
        next(broken.model.editor.context.parameters()).fill_(torch.nan)
    for level in ("prototype", "basis", "edit"):
        assert broken.recommend(HISTORY, level=level).level == "host"


def test_a_compiled_answer_that_is_not_finite_is_not_used(recommender):
    compiled = make().compile()
    expected = compiled.recommend(HISTORY)
    assert (expected.level, expected.bank) == ("edit", recommender.bank.version)

    class Broken:
        graph = b""

        def score(self, known):
            scores, _ = real.score(known)
            return scores, float("nan")

    real, compiled.compiled = compiled.compiled, Broken()
    answer = compiled.recommend(HISTORY)
    assert (answer.level, ids(answer)) == ("edit", ids(expected)), "torch's own edit is finite"


def test_every_level_ends_at_the_host():
    assert {level: chain[0] for level, chain in FALLBACKS.items()} == {level: level for level in LEVELS}
    assert {chain[-1] for chain in FALLBACKS.values()} == {"host"}
    assert FALLBACKS["edit"] == ("edit", "prototype", "host")


def test_a_bank_needs_its_own_editor(recommender):
    with pytest.raises(ConfigError, match="a prototype bank needs the editor"):
        Recommender(personalised(editor=False), IDS, bank=recommender.bank)
    with pytest.raises(MismatchError, match="was made with the editor"):
        Recommender(make(bank=False, seed=1).model, IDS, bank=recommender.bank)


@pytest.mark.parametrize("name", ["bank.json", "bank.safetensors", "prototypes.safetensors", "basis.safetensors"])
def test_a_damaged_bank_is_found(bundle, name):
    path = bundle / "bank" / name
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(FormatError, match=str(bundle / "bank")):
        Recommender.load(bundle)
    path.unlink()
    with pytest.raises(FormatError, match=name):
        Recommender.load(bundle)


def test_banks_of_other_bundles_are_refused(bundle, tmp_path):
    make("sasrec").save(tmp_path / "of another host")
    shutil.rmtree(bundle / "bank")
    shutil.copytree(tmp_path / "of another host" / "bank", bundle / "bank")
    with pytest.raises(MismatchError, match="was made for the host"):
        Recommender.load(bundle)


def test_another_version_of_the_bank_is_refused(bundle, tmp_path):
    changed = make()
    changed = Recommender(changed.model, IDS, bank=replace(changed.bank, parent=changed.bank.version))
    changed.save(tmp_path / "later")
    shutil.rmtree(bundle / "bank")
    shutil.copytree(tmp_path / "later" / "bank", bundle / "bank")
    with pytest.raises(MismatchError, match="was released with"):
        Recommender.load(bundle)


def test_a_bundle_of_the_first_format_has_no_bank_and_loads(bundle):
    path = bundle / "bundle.json"
    header = json.loads(path.read_text())
    del header["bank_version"]
    path.write_text(json.dumps(header | {"version": 1}))
    shutil.rmtree(bundle / "bank")
    old = Recommender.load(bundle)
    assert old.bank is None
    assert old.recommend(HISTORY).items == make().recommend(HISTORY).items
