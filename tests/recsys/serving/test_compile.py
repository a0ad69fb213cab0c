"""What is compiled answers what the trained model says, for batches of different wishes."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from persona.answering import NO_BANK, NO_EDITOR
from persona.bundles import COMPILED
from persona.editor import EditorConfig, ParameterEditor
from persona.errors import ConfigError, DataError, FormatError, MismatchError
from persona.prototypes import fit_bank
from persona.wire import LEVELS
from recsys.hosts import HostConfig, make_host
from recsys.personalised import Personalised
from recsys.serving.graphs import EDIT, ITEM_TABLES, RANK, TABLES, CompiledModel
from recsys.serving.index import IndexConfig
from recsys.serving.item_tables import FloatTable, to_bytes
from recsys.serving.recommender import NO_ITEM, Ask, Recommender
from recsys.serving.release import Release

ITEMS = 60
LENGTH = 6
IDS = [f"i{n}" for n in range(1, ITEMS + 1)]


def release(kind, *, editor=True, bank=True):
    torch.manual_seed(3)
    host = make_host(HostConfig.preset(kind, "paper", ITEMS, dim=8, max_length=LENGTH))
    config = EditorConfig(context_dim=host.context_dim, width=8)
    made = ParameterEditor(config, host.adaptive.specs, host.adaptive.weight_scales()) if editor else None
    for parameter in [*host.parameters(), *(made.parameters() if made else ())]:
        torch.nn.init.normal_(parameter, std=0.4)
    plain = Release(Personalised(host, made), IDS)
    if made is None or not bank:
        return plain
    contexts = plain.context_of([[IDS[i], IDS[(3 * i) % ITEMS]] for i in range(ITEMS)])
    return Release(plain.model, IDS, bank=fit_bank(made, plain.codes(contexts), 3).bank)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """The bundle of a kind of host, compiled once; ``sasrec+int8`` keeps its items in tables of 8 bits."""

    @cache
    def compiled_once(kind):
        folder = tmp_path_factory.mktemp("bundle") / "bundle"
        host, _, table = kind.partition("+")
        release(host).compile(table).save(folder)
        return folder

    return compiled_once


@pytest.fixture(scope="module", params=["gru4rec", "sasrec", "din", "sasrec+float32", "gru4rec+float32"])
def pair(request, folder_of):
    """The same bundle, eager and compiled, the latter after a way through its folder."""
    return release(request.param.partition("+")[0]), folder_of(request.param)


@pytest.fixture(scope="module")
def compiled(pair):
    return Recommender.load(pair[1])


@pytest.fixture(scope="module")
def saved(folder_of):
    return folder_of("gru4rec")


@pytest.fixture
def bundle(saved, tmp_path):
    """A copy to be damaged."""
    return shutil.copytree(saved, tmp_path / "bundle")


def histories(n, seed=0):
    rng = np.random.default_rng(seed)
    return [[IDS[i] for i in rng.integers(ITEMS, size=rng.integers(1, LENGTH + 3))] for _ in range(n)]


def ids(answer):
    return [item.item_id for item in answer.items]


def scores_of(answer):
    return [item.score for item in answer.items]


@torch.no_grad()
def by_torch(made, history, level):
    """Logits (V,), the norm of the edit and the nearest prototype of one history, by the trained model itself."""
    host, context = made.model.host, made.context_of([history])
    nearest = int(made.server.assign(made.codes(context))[0])
    edit = made.model.edit(context) if level == "edit" else made.server.edit(made.codes(context), level)
    norm = 0.0 if level == "host" else float(edit.norm())
    return host.score_catalogue(host.encode(context), edit)[0, 1:].numpy(), norm, nearest


def best_by_torch(made, history, k, level="edit", seen=False, without=()):
    scores = by_torch(made, history, level)[0].copy()
    scores[[IDS.index(i) for i in {*without, *([] if seen else history)}]] = -np.inf
    order = np.argsort(-scores)[:k]
    return [IDS[i] for i in order], scores[order]


@pytest.mark.parametrize("rows", [1, 2, 9])
def test_a_batch_of_levels_is_answered_as_by_torch(pair, compiled, rows):
    asks = [Ask(h, k=5, level=LEVELS[i % 4]) for i, h in enumerate(histories(rows, rows))]
    for ask, got in zip(asks, compiled.answer(asks), strict=True):
        wanted, scores = best_by_torch(pair[0], ask.history, 5, ask.level)
        _, norm, nearest = by_torch(pair[0], ask.history, ask.level)
        assert ids(got) == wanted
        assert scores_of(got) == pytest.approx(scores, abs=1e-4), "what is measured is what is released"
        assert (got.level, got.fallback, got.prototype) == (ask.level, "", nearest)
        assert got.edit_norm == pytest.approx(norm, rel=1e-4)
        assert got.distance >= 0


def test_exclusions_and_choices_act_on_their_own_row_alone(pair, compiled):
    history = [IDS[4], IDS[7]]
    asks = [
        Ask(history, k=4),
        Ask(history, k=ITEMS),
        Ask(history, k=4, seen=True),
        Ask(history, k=4, exclude=IDS[:40]),
        Ask(history, k=4, only=[IDS[4], IDS[9], "unknown", IDS[20]]),
        Ask(history, k=4, only=[]),
    ]
    few, every, seen, excluding, among, none = compiled.answer(asks)
    assert ids(few) == best_by_torch(pair[0], history, 4)[0]
    assert len(every.items) == ITEMS - 2
    assert ids(seen) == best_by_torch(pair[0], history, 4, seen=True)[0]
    assert ids(excluding) == best_by_torch(pair[0], history, 4, without=IDS[:40])[0]
    assert ids(among) == [i for i in ids(every) if i in {IDS[9], IDS[20]}], "the history's own item stays out"
    assert none.items == []


def test_histories_that_say_nothing_are_answered_by_the_host(pair, compiled):
    host = best_by_torch(pair[0], [], 3, level="host")[0]
    for history, unknown in ([], []), (["x", 7], ["x", 7]):
        answer = compiled.answer([Ask(history, k=3), Ask([IDS[0]])])[0]
        assert (answer.level, answer.fallback, answer.unknown) == ("host", NO_ITEM, unknown)
        assert (answer.prototype, answer.edit_norm) == (None, 0.0)
        assert ids(answer) == host


def test_only_the_end_of_a_long_history_is_read(compiled):
    long = histories(1, 5)[0] * 5
    answer, tail = compiled.answer([Ask(long, seen=True), Ask(long[-LENGTH:], seen=True)])
    assert (answer.unread, tail.unread) == (len(long) - LENGTH, 0)
    assert answer.items == tail.items


def test_wishes_that_cannot_be_met_are_refused(compiled):
    with pytest.raises(ConfigError, match="k is 0"):
        compiled.answer([Ask([], k=0)])
    with pytest.raises(ConfigError, match="did you mean 'edit'"):
        compiled.answer([Ask([], level="edits")])
    assert compiled.answer([]) == []


def test_what_the_host_makes_of_an_edit_has_to_be_finite(compiled, monkeypatch):
    plain = compiled.answer([Ask([IDS[1]], level="host")])[0]
    rank = compiled.model.rank

    def poisoned(inputs, edits, best, *, whole):
        scores, items, every = rank(inputs, edits, best, whole=whole)
        return (scores if edits is None else scores * np.float32(np.nan)), items, every

    monkeypatch.setattr(compiled.model, "rank", poisoned)
    answer = compiled.answer([Ask([IDS[1]])])[0]
    assert (answer.level, answer.fallback, answer.edit_norm) == ("host", "the edit is not finite", 0.0)
    assert answer.items == plain.items


@pytest.mark.parametrize(("options", "reason"), [({"editor": False}, NO_EDITOR), ({"bank": False}, NO_BANK)])
def test_bundles_without_editor_or_bank(options, reason, tmp_path):
    made = release("gru4rec", **options)
    made.compile().save(tmp_path / "bundle")
    answers = Recommender.load(tmp_path / "bundle").answer([Ask([IDS[3]], level=v) for v in LEVELS])
    assert [a.level for a in answers] == ["host", "host", "host", "edit" if reason == NO_BANK else "host"]
    assert [a.fallback for a in answers] == ["", reason, reason, "" if reason == NO_BANK else reason]
    edited = made.model.score_catalogue(made.context_of([[IDS[3]]]))[0, 1:].detach().numpy()
    best = [IDS[i] for i in np.argsort(-edited) if i != 3]
    assert ids(answers[3]) == best[:10]


@pytest.mark.parametrize("name", [EDIT, RANK, TABLES])
def test_damaged_files_are_refused(bundle, name):
    path = bundle / COMPILED / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    for load in (Release.load, Recommender.load):
        with pytest.raises(FormatError, match="is damaged"):
            load(bundle)
    path.unlink()
    with pytest.raises(FormatError, match="cannot be read"):
        Recommender.load(bundle)


def test_files_of_another_bundle_are_refused(bundle, tmp_path):
    path = bundle / "bundle.json"
    header = json.loads(path.read_text())
    for key, error in (("host_digest", MismatchError), ("bank_version", MismatchError), ("items_digest", FormatError)):
        path.write_text(json.dumps(header | {key: "0" * 64}))
        with pytest.raises(error):
            Recommender.load(bundle)
    path.write_text(json.dumps(header))
    Recommender.load(bundle)
    with pytest.raises(DataError, match="holds no bundle"):
        Recommender.load(tmp_path)


def test_no_torch_is_needed(saved):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from recsys.serving.recommender import Recommender\n"
        f"print(len(Recommender.load({str(saved)!r}).recommend(['i1']).items))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "10\n", done.stderr


def test_bundles_that_were_never_compiled_are_compiled_where_torch_is(saved, tmp_path):
    """As releases before the compiled form left them."""
    release("gru4rec").save(tmp_path / "old")
    assert not (tmp_path / "old" / COMPILED).exists()
    asks = [Ask(h, k=5, level=level) for h, level in zip(histories(4), LEVELS, strict=True)]
    assert Recommender.load(tmp_path / "old").answer(asks) == Recommender.load(saved).answer(asks)
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from recsys.serving.recommender import Recommender\n"
        f"Recommender.load({str(tmp_path / 'old')!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "without its compiled form: run `persona recsys release` again" in done.stderr


def test_another_bank_takes_the_graphs_along(saved):
    made = Release.load(saved)
    other = made.with_bank(replace(made.bank, parent=made.bank.version))
    assert {name for name, data in other.compiled.items() if data != made.compiled[name]} == {TABLES}
    assert other.recommender().bank == other.bank.version != made.bank.version


@pytest.mark.parametrize("table", ["int8", "int4"])
def test_quantised_tables_are_small_and_answer_nearly_alike(folder_of, table):
    exact, small = (Recommender.load(folder_of(f"sasrec+{kind}")) for kind in ("float32", table))
    sizes = [len(c.model.files[ITEM_TABLES]) for c in (exact, small)]
    assert sizes[1] < sizes[0]
    asks = [Ask(h, k=20, level="host") for h in histories(30)]
    pairs = list(zip(exact.answer(asks), small.answer(asks), strict=True))
    overlap = np.mean([len(set(ids(a)) & set(ids(b))) / 20 for a, b in pairs])
    spread = np.std([score for a, _ in pairs for score in scores_of(a)])
    error = np.abs([scores_of(a)[0] - scores_of(b)[0] for a, b in pairs]).max()
    assert overlap > {"int8": 0.9, "int4": 0.5}[table]
    assert 0 < error < {"int8": 0.1, "int4": 1.0}[table] * spread


def test_a_catalogue_too_large_for_the_graph_is_kept_in_tables(monkeypatch, folder_of, tmp_path):
    monkeypatch.setattr("recsys.serving.compile.IN_GRAPH", ITEMS - 1)
    release("gru4rec").compile().save(tmp_path / "bundle")
    made = Recommender.load(tmp_path / "bundle")
    assert ITEM_TABLES in made.model.files
    asks = [Ask(h, k=5, level=level) for h, level in zip(histories(4), LEVELS, strict=True)]
    within = Recommender.load(folder_of("gru4rec")).answer(asks)
    assert [ids(a) for a in made.answer(asks)] == [ids(a) for a in within]


def test_an_index_finds_what_blocks_find(folder_of):
    """A flat index looks at everything; one that looks into a single list of many finds less, and says no more than it found."""
    bundle = folder_of("sasrec+float32")
    exact, flat = Recommender.load(bundle), Recommender.load(bundle, IndexConfig("Flat"))
    asks = [Ask(h, k=5, level=level, exclude=IDS[:2]) for h, level in zip(histories(4), LEVELS, strict=True)]
    asks.append(Ask(IDS[:3], k=3, only=IDS[5:10]))
    for one, other in zip(exact.answer(asks), flat.answer(asks), strict=True):
        assert ids(one) == ids(other)
        assert one.level == other.level
        assert scores_of(one) == pytest.approx(scores_of(other), abs=1e-5)
    few = Recommender.load(bundle, IndexConfig("IVF8,Flat", probes=1))
    for one, other in zip(exact.answer(asks[:4]), few.answer([replace(a, k=ITEMS) for a in asks[:4]]), strict=True):
        assert other.level == one.level, "few items are no reason to fall back to the host"
        assert 0 < len(other.items) < ITEMS - 5
        assert np.isfinite(scores_of(other)).all()


def test_an_index_needs_items_outside_the_graph(folder_of):
    with pytest.raises(ConfigError, match="--item-table float32"):
        Recommender.load(folder_of("sasrec"), IndexConfig("Flat"))


def test_tables_that_make_no_sense_are_refused(folder_of, tmp_path):
    with pytest.raises(ConfigError, match="'int8'"):
        release("sasrec").compile("int9")
    with pytest.raises(ConfigError, match="no item table to search"):
        release("din").compile("int8")
    files = dict(Recommender.load(folder_of("sasrec+float32")).model.files)
    for damaged in (files[ITEM_TABLES][:50], to_bytes({"vectors": FloatTable(np.zeros((3, 8), dtype=np.float32))})):
        with pytest.raises(FormatError, match="release the bundle again"):
            CompiledModel({**files, ITEM_TABLES: damaged}, LENGTH)
