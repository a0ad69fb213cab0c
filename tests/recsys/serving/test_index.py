import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persona.errors import ConfigError, MismatchError
from recsys.serving import index as retrieval
from recsys.serving.index import EXACT, ExactIndex, FaissIndex, IndexConfig, recall
from recsys.serving.item_tables import FloatTable, as_table


def drawn(count, width=8, seed=0, distinct=None):
    """Vectors; with ``distinct``, only so many of them differ, so that there are ties."""
    values = np.random.default_rng(seed).normal(size=(distinct or count, width)).astype(np.float32)
    return values[np.arange(count) % len(values)]


def by_sorting(queries, values, k):
    """All scores, sorted; ties to the lower row."""
    scores = queries @ values.T
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, rows, axis=1), rows


@settings(max_examples=60, deadline=None)
@given(
    items=st.integers(1, 400),
    queries=st.integers(0, 5),
    k=st.integers(1, 30),
    distinct=st.sampled_from([None, 1, 3]),
    block=st.sampled_from([1, 7, 64, 1000]),
    seed=st.integers(0, 100),
)
def test_blocks_find_what_sorting_all_scores_finds(items, queries, k, distinct, block, seed):
    # Small whole numbers, so that a score is the same however the product is cut.
    values = np.rint(3 * drawn(items, seed=seed, distinct=distinct))
    asked, k = np.rint(3 * drawn(max(queries, 1), seed=seed + 1))[:queries], min(k, items)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "SMALLEST_BLOCK", block)
        patch.setattr(retrieval, "BLOCK_NUMBERS", block)
        scores, rows = ExactIndex(FloatTable(values)).search(asked, k)
        whole = ExactIndex(FloatTable(values)).scores(asked)
    expected_scores, expected_rows = by_sorting(asked, values, k)
    assert rows.tolist() == expected_rows.tolist()
    assert scores.tolist() == expected_scores.tolist()
    assert whole.tolist() == (asked @ values.T).tolist()


def test_quantised_tables_are_searched_as_what_they_hold():
    values, queries = drawn(5000), drawn(4, seed=1)
    table = as_table(values, "int8")
    _, rows = ExactIndex(table).search(queries, 10)
    _, expected = by_sorting(queries, table.rows(slice(None)), 10)
    assert recall(rows, expected) == 1.0
    assert recall(rows, by_sorting(queries, values, 10)[1]) > 0.9


def test_a_query_that_is_not_finite_finds_nothing_and_harms_no_other():
    values, queries = drawn(100), drawn(3, seed=1)
    queries[1, 0] = np.nan
    scores, rows = ExactIndex(FloatTable(values)).search(queries, 5)
    assert np.isneginf(scores[1]).all()
    assert (rows < 100).all()
    assert rows[[0, 2]].tolist() == by_sorting(queries[[0, 2]], values, 5)[1].tolist()


def test_what_is_refused():
    index = ExactIndex(FloatTable(drawn(20)))
    for k in (0, 21):
        with pytest.raises(ConfigError, match="1 to 20"):
            index.search(drawn(1), k)
    with pytest.raises(MismatchError, match="width 8"):
        index.search(drawn(1, width=9), 1)


def test_without_faiss_a_sentence_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError, match=r"pip install faiss-cpu.*retrieve exactly"):
        FaissIndex(FloatTable(drawn(20)), "Flat")


def test_a_config_builds_its_index():
    values = FloatTable(drawn(4000, width=16))
    assert isinstance(EXACT.index(values), ExactIndex)
    few, many = (IndexConfig("IVF64,Flat", probes=p).index(values).search(drawn(50, 16, 1), 10) for p in (1, 64))
    assert recall(few[1], many[1]) < 1
    with pytest.raises(ConfigError, match="at least one list"):
        IndexConfig("IVF64,Flat", probes=0)


def test_faiss_finds_nearly_all():
    values, queries = drawn(4000, width=16), drawn(50, width=16, seed=1)
    exact = ExactIndex(FloatTable(values)).search(queries, 10)
    flat = FaissIndex(FloatTable(values), "Flat").search(queries, 10)
    assert recall(flat[1], exact[1]) == 1.0
    np.testing.assert_allclose(flat[0], exact[0], rtol=1e-5)
    few, many = (FaissIndex(FloatTable(values), "IVF64,Flat", probes=p).search(queries, 10)[1] for p in (1, 64))
    assert recall(few, exact[1]) < recall(many, exact[1]) == 1.0
    assert np.isneginf(FaissIndex(FloatTable(values), "IVF64,Flat", probes=1).search(queries, 4000)[0]).any()
    with pytest.raises(ConfigError, match="IVF1024"):
        FaissIndex(FloatTable(values), "Nonsense")
