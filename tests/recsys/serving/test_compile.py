"""The compiled recommender answers what the recommender itself answers, for batches of different wishes."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from persona.editor import EditorConfig, ParameterEditor
from persona.errors import ConfigError, DataError, FormatError, MismatchError
from persona.prototypes import fit_bank
from recsys.hosts import HostConfig, make_host
from recsys.personalised import Personalised
from recsys.serving.answers import FOLDER, NO_BANK, NO_EDITOR, NO_ITEM, Ask, CompiledRecommender
from recsys.serving.graphs import EDIT, ITEM_TABLES, RANK, TABLES, CompiledModel
from recsys.serving.index import IndexConfig
from recsys.serving.item_tables import FloatTable, to_bytes
from recsys.serving.recommender import Recommender

ITEMS = 60
LENGTH = 6
IDS = [f"i{n}" for n in range(1, ITEMS + 1)]
LEVELS = ("host", "prototype", "basis", "edit")


def recommender(kind, *, editor=True, bank=True):
    torch.manual_seed(3)
    host = make_host(HostConfig.preset(kind, "paper", ITEMS, dim=8, max_length=LENGTH))
    config = EditorConfig(context_dim=host.context_dim, width=8)
    made = ParameterEditor(config, host.adaptive.specs, host.adaptive.weight_scales()) if editor else None
    for parameter in [*host.parameters(), *(made.parameters() if made else ())]:
        torch.nn.init.normal_(parameter, std=0.4)
    plain = Recommender(Personalised(host, made), IDS)
    if made is None or not bank:
        return plain
    contexts = plain.context_of([[IDS[i], IDS[(3 * i) % ITEMS]] for i in range(ITEMS)])
    return Recommender(plain.model, IDS, bank=fit_bank(made, plain.codes(contexts), 3).bank)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """The bundle of a kind of host, compiled once; ``sasrec+int8`` keeps its items in tables of 8 bits."""

    @cache
    def compiled_once(kind):
        folder = tmp_path_factory.mktemp("bundle") / "bundle"
        host, _, table = kind.partition("+")
        recommender(host).compile(table).save(folder)
        return folder

    return compiled_once


@pytest.fixture(scope="module", params=["gru4rec", "sasrec", "din", "sasrec+float32", "gru4rec+float32"])
def pair(request, folder_of):
    """The same bundle, eager and compiled, the latter after a way through its folder."""
    return recommender(request.param.partition("+")[0]), folder_of(request.param)


@pytest.fixture(scope="module")
def compiled(pair):
    return CompiledRecommender.load(pair[1])


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
    return [IDS[i - 1] for i in answer.items]


@pytest.mark.parametrize("rows", [1, 2, 9])
def test_a_batch_of_levels_is_answered_as_by_torch(pair, compiled, rows):
    asks = [Ask(h, k=5, level=LEVELS[i % 4]) for i, h in enumerate(histories(rows, rows))]
    for ask, got in zip(asks, compiled.recommend(asks), strict=True):
        wanted = pair[0].recommend(ask.history, 5, level=ask.level)
        assert ids(got) == [item.item_id for item in wanted.items]
        assert got.scores == pytest.approx([item.score for item in wanted.items], abs=1e-4)
        assert (got.level, got.fallback) == (wanted.level, wanted.fallback) == (ask.level, "")
        assert got.edit_norm == pytest.approx(wanted.edit_norm, rel=1e-4)
        if ask.level in {"prototype", "basis"}:
            assert got.prototype == wanted.prototype


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
    few, every, seen, excluding, among, none = compiled.recommend(asks)
    eager = pair[0]
    assert ids(few) == [item.item_id for item in eager.recommend(history, 4).items]
    assert len(every.items) == ITEMS - 2
    assert ids(seen) == [item.item_id for item in eager.recommend(history, 4, seen=True).items]
    assert ids(excluding) == [item.item_id for item in eager.recommend(history, 4, exclude=IDS[:40]).items]
    assert ids(among) == [i for i in ids(every) if i in {IDS[9], IDS[20]}], "the history's own item stays out"
    assert (none.items, none.scores) == ([], [])


def test_histories_that_say_nothing_are_answered_by_the_host(pair, compiled):
    host = pair[0].recommend([], 3, level="host")
    for history, unknown in ([], []), (["x", 7], ["x", 7]):
        answer = compiled.recommend([Ask(history, k=3), Ask([IDS[0]])])[0]
        assert (answer.level, answer.fallback, answer.unknown) == ("host", NO_ITEM, unknown)
        assert (answer.prototype, answer.edit_norm) == (None, 0.0)
        assert ids(answer) == [item.item_id for item in host.items]


def test_only_the_end_of_a_long_history_is_read(compiled):
    long = histories(1, 5)[0] * 5
    answer, tail = compiled.recommend([Ask(long, seen=True), Ask(long[-LENGTH:], seen=True)])
    assert (answer.unread, tail.unread) == (len(long) - LENGTH, 0)
    assert answer.items == tail.items


def test_wishes_that_cannot_be_met_are_refused(compiled):
    with pytest.raises(ConfigError, match="k is 0"):
        compiled.recommend([Ask([], k=0)])
    with pytest.raises(ConfigError, match="did you mean 'edit'"):
        compiled.recommend([Ask([], level="edits")])
    assert compiled.recommend([]) == []


def test_what_the_host_makes_of_an_edit_has_to_be_finite(compiled, monkeypatch):
    plain = compiled.recommend([Ask([IDS[1]], level="host")])[0]
    rank = compiled.model.rank

    def poisoned(inputs, edits, best, *, whole):
        scores, items, every = rank(inputs, edits, best, whole=whole)
        return (scores if edits is None else scores * np.float32(np.nan)), items, every

    monkeypatch.setattr(compiled.model, "rank", poisoned)
    answer = compiled.recommend([Ask([IDS[1]])])[0]
    assert (answer.level, answer.fallback, answer.edit_norm) == ("host", "the edit is not finite", 0.0)
    assert (answer.items, answer.scores) == (plain.items, plain.scores)


@pytest.mark.parametrize(("options", "reason"), [({"editor": False}, NO_EDITOR), ({"bank": False}, NO_BANK)])
def test_bundles_without_editor_or_bank(options, reason, tmp_path):
    made = recommender("gru4rec", **options)
    made.compile().save(tmp_path / "bundle")
    answers = CompiledRecommender.load(tmp_path / "bundle").recommend([Ask([IDS[3]], level=v) for v in LEVELS])
    assert [a.level for a in answers] == ["host", "host", "host", "edit" if reason == NO_BANK else "host"]
    assert [a.fallback for a in answers] == ["", reason, reason, "" if reason == NO_BANK else reason]
    single = made.recommend([IDS[3]])
    assert ids(answers[3]) == [item.item_id for item in single.items]


@pytest.mark.parametrize("name", [EDIT, RANK, TABLES])
def test_damaged_files_are_refused(bundle, name):
    path = bundle / FOLDER / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    for load in (Recommender.load, CompiledRecommender.load):
        with pytest.raises(FormatError, match="is damaged"):
            load(bundle)
    path.unlink()
    with pytest.raises(FormatError, match="cannot be read"):
        CompiledRecommender.load(bundle)


def test_files_of_another_bundle_are_refused(bundle, tmp_path):
    path = bundle / "bundle.json"
    header = json.loads(path.read_text())
    for key, error in (("host_digest", MismatchError), ("bank_version", MismatchError), ("items_digest", FormatError)):
        path.write_text(json.dumps(header | {key: "0" * 64}))
        with pytest.raises(error):
            CompiledRecommender.load(bundle)
    path.write_text(json.dumps(header | {"compiled": None}))
    with pytest.raises(DataError, match="without its compiled form"):
        CompiledRecommender.load(bundle)
    with pytest.raises(DataError, match="holds no bundle"):
        CompiledRecommender.load(tmp_path)


def test_no_torch_is_needed(saved):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from recsys.serving.answers import Ask, CompiledRecommender\n"
        f"print(len(CompiledRecommender.load({str(saved)!r}).recommend([Ask(['i1'])])[0].items))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "10\n", done.stderr


def test_single_answers_of_the_recommender_use_the_graphs(pair):
    eager, loaded = pair[0], Recommender.load(pair[1])
    assert loaded.compiled is not None
    for history in histories(3, 9):
        one, two = eager.recommend(history), loaded.recommend(history)
        assert [item.item_id for item in one.items] == [item.item_id for item in two.items]
        assert [i.score for i in one.items] == pytest.approx([i.score for i in two.items], abs=1e-4)
        assert one.edit_norm == pytest.approx(two.edit_norm, rel=1e-4)


@pytest.mark.parametrize("table", ["int8", "int4"])
def test_quantised_tables_are_small_and_answer_nearly_alike(folder_of, table):
    exact, small = (CompiledRecommender.load(folder_of(f"sasrec+{kind}")) for kind in ("float32", table))
    sizes = [len(c.model.files[ITEM_TABLES]) for c in (exact, small)]
    assert sizes[1] < sizes[0]
    asks = [Ask(h, k=20, level="host") for h in histories(30)]
    pairs = list(zip(exact.recommend(asks), small.recommend(asks), strict=True))
    overlap = np.mean([len(set(a.items) & set(b.items)) / 20 for a, b in pairs])
    spread = np.std([score for a, _ in pairs for score in a.scores])
    error = np.abs([a.scores[0] - b.scores[0] for a, b in pairs]).max()
    assert overlap > {"int8": 0.9, "int4": 0.5}[table]
    assert 0 < error < {"int8": 0.1, "int4": 1.0}[table] * spread


def test_a_catalogue_too_large_for_the_graph_is_kept_in_tables(monkeypatch, folder_of, tmp_path):
    monkeypatch.setattr("recsys.serving.compile.IN_GRAPH", ITEMS - 1)
    recommender("gru4rec").compile().save(tmp_path / "bundle")
    made = CompiledRecommender.load(tmp_path / "bundle")
    assert ITEM_TABLES in made.model.files
    asks = [Ask(h, k=5, level=level) for h, level in zip(histories(4), LEVELS, strict=True)]
    within = CompiledRecommender.load(folder_of("gru4rec")).recommend(asks)
    assert [a.items for a in made.recommend(asks)] == [a.items for a in within]


def test_an_index_finds_what_blocks_find(folder_of):
    """A flat index looks at everything; one that looks into a single list of many finds less, and says no more than it found."""
    bundle = folder_of("sasrec+float32")
    exact, flat = CompiledRecommender.load(bundle), CompiledRecommender.load(bundle, IndexConfig("Flat"))
    asks = [Ask(h, k=5, level=level, exclude=IDS[:2]) for h, level in zip(histories(4), LEVELS, strict=True)]
    asks.append(Ask(IDS[:3], k=3, only=IDS[5:10]))
    for one, other in zip(exact.recommend(asks), flat.recommend(asks), strict=True):
        assert one.items == other.items
        assert one.level == other.level
        assert one.scores == pytest.approx(other.scores, abs=1e-5)
    few = CompiledRecommender.load(bundle, IndexConfig("IVF8,Flat", probes=1))
    for one, other in zip(
        exact.recommend(asks[:4]), few.recommend([replace(a, k=ITEMS) for a in asks[:4]]), strict=True
    ):
        assert other.level == one.level, "few items are no reason to fall back to the host"
        assert 0 < len(other.items) < ITEMS - 5
        assert np.isfinite(other.scores).all()


def test_an_index_needs_items_outside_the_graph(folder_of):
    with pytest.raises(ConfigError, match="--item-table float32"):
        CompiledRecommender.load(folder_of("sasrec"), IndexConfig("Flat"))


def test_tables_that_make_no_sense_are_refused(folder_of, tmp_path):
    with pytest.raises(ConfigError, match="'int8'"):
        recommender("sasrec").compile("int9")
    with pytest.raises(ConfigError, match="no item table to search"):
        recommender("din").compile("int8")
    files = dict(CompiledRecommender.load(folder_of("sasrec+float32")).model.files)
    for damaged in (files[ITEM_TABLES][:50], to_bytes({"vectors": FloatTable(np.zeros((3, 8), dtype=np.float32))})):
        with pytest.raises(FormatError, match="release the bundle again"):
            CompiledModel({**files, ITEM_TABLES: damaged}, LENGTH)
