import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persona.errors import ConfigError, DataError, FormatError, MismatchError
from persona.rows import RowSums, load_sums, save_sums

ROWS, WIDTH, EVENTS = 6, 4, 50


def events(seed):
    rng = np.random.default_rng(seed)
    messages = rng.normal(size=(EVENTS, WIDTH)).astype(np.float32)
    return rng.integers(0, ROWS, EVENTS), messages, rng.random(EVENTS) < 0.9, np.sort(rng.random(EVENTS) * 6)


def summed(seed, chosen=slice(None), half_life=np.inf):
    made = RowSums(ROWS, WIDTH, half_life)
    made.add(*(part[chosen] for part in events(seed)))
    return made


def same(one, other):
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("sums", "read", "counts"))


def test_sums_are_those_of_a_loop():
    rows, messages, has, _ = events(3)
    read = summed(3).at()
    for row in range(ROWS):
        own = (rows == row) & has
        np.testing.assert_allclose(read.sums[row], messages[own].sum(0), atol=1e-4)
        assert (read.read[row], read.counts[row]) == (own.sum(), (rows == row).sum())
    assert read.total == EVENTS


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), half_life=st.sampled_from([np.inf, 1.0]))
def test_shards_add_up_to_the_bit_in_any_order(seed, half_life):
    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.choice(EVENTS, 3, replace=False))
    order = rng.permutation(EVENTS)
    merged = RowSums(ROWS, WIDTH, half_life)
    for part in rng.permutation(4):
        merged.merge(summed(seed, np.split(order, cuts)[part], half_life))
    assert same(merged, summed(seed, half_life=half_life))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), half_life=st.sampled_from([np.inf, 1.0]))
def test_what_is_taken_out_was_never_there(seed, half_life):
    rng = np.random.default_rng(seed)
    theirs = rng.random(EVENTS) < 0.3
    rest = summed(seed, half_life=half_life)
    rest.add(*(part[theirs] for part in events(seed)), sign=-1)
    assert same(rest, summed(seed, ~theirs, half_life))


def test_an_event_counts_half_after_its_half_life():
    sums = RowSums(2, 1, half_life=5.0)
    sums.add(np.array([1, 1]), np.array([[8.0], [4.0]]), moments=np.array([0.0, 5.0]))
    read = sums.at(10.0)
    assert (read.sums[1, 0], read.read[1], read.total) == (4.0, 0.75, 0.75)


def test_a_long_stream_decays_as_the_formula_says_however_it_is_cut():
    moments = np.arange(400, dtype=np.float64)
    rows, messages = np.zeros(400, dtype=np.int64), np.ones((400, 1))
    expected = np.exp2((moments - 400) / 3).sum()
    for pieces in (1, 7, 400):
        sums = RowSums(1, 1, half_life=3.0)
        for part in np.array_split(np.arange(400), pieces):
            sums.add(rows[part], messages[part], moments=moments[part])
        assert sums.at(400.0).sums[0, 0] == pytest.approx(expected, abs=1e-4)
        assert abs(sums.sums).max() < 2**20, "the origin follows"
        late = RowSums(1, 1, half_life=3.0)
        late.merge(sums)
        assert late.at(400.0).counts[0] == pytest.approx(expected, abs=1e-4)


def test_sums_are_kept_with_what_they_are_of(tmp_path):
    path = tmp_path / "rows.safetensors"
    for half_life in (np.inf, 2.0):
        sums = summed(1, half_life=half_life)
        digest = save_sums(path, sums, "a" * 64, {"until": 7})
        again, about = load_sums(path, "a" * 64)
        assert same(again, sums)
        assert (again.half_life, again.origin, about) == (half_life, sums.origin, {"until": 7})
        assert save_sums(path, again, "a" * 64, about) == digest
    with pytest.raises(MismatchError, match="over the table aaaaaaaaaaaa, but bbbbbbbbbbbb"):
        load_sums(path, "b" * 64)
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)
    with pytest.raises(FormatError, match="damaged"):
        load_sums(path, "a" * 64)


def test_what_cannot_be_summed_up_is_refused():
    sums = RowSums(2, 1, half_life=2.0)
    with pytest.raises(DataError, match="not finite"):
        sums.add(np.array([1]), np.array([[np.nan]]), moments=np.zeros(1))
    with pytest.raises(DataError, match="need the moment"):
        sums.add(np.array([1]), np.ones((1, 1)))
    with pytest.raises(MismatchError, match="another table or half-life"):
        sums.merge(RowSums(2, 1))
    with pytest.raises(ConfigError, match="half-life of 0"):
        RowSums(2, 1, half_life=0)
    sums.add(np.zeros(0, dtype=np.int64), np.zeros((0, 1)))
    assert sums.at().total == 0
