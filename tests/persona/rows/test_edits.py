import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persona.rows import RowEdits, RowSums, decode_rows, encode_rows, features, fit_generator, row_bytes
from persona.rows.edits import KNOWN

ROWS, WIDTH = 12, 4


def table(seed=0):
    return np.random.default_rng(seed).normal(size=(ROWS, WIDTH)).astype(np.float32)


KNOWN_COUNTS = np.array([0, 0, 2, 5, 9, 50, 400, 7, 8, 9, 10, 11])


def made(seed=0, **settings):
    generator = np.random.default_rng(seed + 1).normal(size=(2 * WIDTH + 2, WIDTH)) / 10
    return RowEdits(table(seed), KNOWN_COUNTS, **{"generator": generator, **settings})


def messages(rng, count, base):
    """Means of base rows, as contexts make them."""
    return base[rng.integers(0, ROWS, (count, 3))].mean(1)


def stream(seed, count=60, rows=ROWS):
    rng = np.random.default_rng(seed)
    sums = RowSums(ROWS, WIDTH)
    sums.add(rng.integers(0, rows, count), messages(rng, count, table()))
    return sums


def test_without_events_the_table_is_the_base_to_the_bit():
    read = RowSums(ROWS, WIDTH).at()
    for k0 in (0.1, 1.0, np.inf):
        assert made(k0=k0).table(read).tobytes() == table().tobytes()
    assert made().bias(read) is None
    assert np.isfinite(made(beta=1.0).bias(read)).all()


@pytest.mark.parametrize("k0", [0.1, np.inf])
def test_rows_without_events_stay_and_the_others_are_what_the_formula_says(k0):
    read, edits = stream(1, rows=8).at(), made(k0=k0)
    found = edits.table(read)
    for row in range(ROWS):
        n, c = read.read[row], KNOWN_COUNTS[row]
        prior = 0.0 if c < KNOWN else k0 * c
        share = 0.0 if n == 0 else n / (n + prior)
        x = read.sums[row] / (n + 3)
        rate = np.log(1e4 * (read.counts[row] + 0.5) / read.total)
        expected = (1 - share) * table()[row] + share * (np.concatenate([x, [rate, 1], rate * x]) @ edits.generator)
        np.testing.assert_allclose(found[row], expected, rtol=1e-5, atol=1e-6)
        if share == 0:
            assert found[row].tobytes() == table()[row].tobytes()
    np.testing.assert_allclose(
        made(beta=0.5).bias(read), 0.5 * np.log(read.counts + 0.03 * KNOWN_COUNTS + 0.3), rtol=1e-6
    )


def test_the_more_events_the_less_of_the_base_is_left():
    edits, distances = made(k0=1.0), []
    for count in (0, 3, 30, 3000):
        sums = RowSums(ROWS, WIDTH)
        sums.add(np.full(count, 6), np.ones((count, WIDTH)))
        read = sums.at()
        goal = (features(read, np.array([6])) @ edits.generator)[0]
        gap = np.linalg.norm(table()[6] - goal)
        distances.append(np.linalg.norm(edits.table(read)[6] - goal) / gap)
    assert distances[0] == pytest.approx(1.0)
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.2


def test_the_generator_is_the_ridge_solution_and_says_what_it_explains():
    reads = [stream(seed).at() for seed in range(5)]
    truth = np.random.default_rng(9).normal(size=(2 * WIDTH + 2, WIDTH))
    known = np.full(ROWS, 10)
    X = np.concatenate([features(read, np.flatnonzero(read.read > 0)) for read in reads])
    Y = np.concatenate([table()[read.read > 0] for read in reads]).astype(np.float64)
    generator, explained = fit_generator(reads, table(), known)
    np.testing.assert_allclose(generator, np.linalg.solve(X.T @ X + np.eye(len(X.T)), X.T @ Y), rtol=1e-6)
    residual = ((Y - X @ generator) ** 2).sum() / ((Y - Y.mean(0)) ** 2).sum()
    assert explained == pytest.approx(1 - residual)
    exact = (features(reads[0], np.arange(ROWS)) @ truth).astype(np.float32)
    assert fit_generator([reads[0]] * 50, exact, known)[1] > 0.9
    unlearned = fit_generator(reads, table(), np.zeros(ROWS, dtype=np.int64))
    assert not unlearned[0].any()
    assert unlearned[1] == 0.0


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), k0=st.sampled_from([0.1, 1.0, np.inf]), at_row=st.integers(1, 40))
def test_no_attack_moves_a_row_further_than_the_bound(seed, k0, at_row):
    rng = np.random.default_rng(seed)
    edits, sums = made(seed % 7, k0=k0, beta=0.5), RowSums(ROWS, WIDTH)
    honest = int(rng.integers(0, 100))
    sums.add(rng.integers(0, ROWS - 2, honest), messages(rng, honest, edits.base))
    read = sums.at()
    in_all = 3 * at_row
    rows_bound, bias_bound = edits.bound(read, at_row, in_all)
    before, bias = edits.table(read), edits.bias(read)
    targets = rng.choice(ROWS, 3, replace=False)
    used = int(rng.integers(1, at_row + 1))
    loudest = edits.base[np.linalg.norm(edits.base, axis=1).argmax()]
    sums.add(np.repeat(targets, used), np.repeat(rng.choice([-1, 1], 3)[:, None] * loudest, used, axis=0))
    moved = np.linalg.norm(edits.table(sums.at()) - before, axis=1)
    assert (moved <= rows_bound + 1e-5).all()
    assert (np.abs(edits.bias(sums.at()) - bias) <= bias_bound + 1e-5).all()


def test_a_bound_grows_with_the_attack_and_shrinks_with_honest_events():
    edits = made(k0=0.1)
    few, many = (edits.bound(stream(2, count=count).at(), 5, 5)[0] for count in (60, 6000))
    assert (edits.bound(stream(2).at(), 50, 50)[0] > few).all()
    assert (many < few).all()
    still = RowEdits(table(), KNOWN_COUNTS, None).bound(stream(2).at(), 5, 5)
    assert not np.concatenate(still).any()


def test_a_row_on_the_wire():
    assert row_bytes(32) == 38
    rows, bias = table(), np.linspace(-3, 9, ROWS, dtype=np.float32)
    message = encode_rows(rows, bias)
    assert len(message) == ROWS * row_bytes(WIDTH)
    again, biases = decode_rows(message, WIDTH)
    assert np.abs(again - rows).max() <= np.abs(rows).max() / 127 / 2 + 1e-6
    np.testing.assert_allclose(biases, bias, atol=5e-3)
