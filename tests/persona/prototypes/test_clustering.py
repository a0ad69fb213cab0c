import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from persona.errors import ConfigError, DataError
from persona.prototypes.clustering import ClusterSums, distance_floor, kmeans, plus_plus
from tests.persona.prototypes.world import codes, editor, metric


def blobs(n=400, groups=6, d=5, spread=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(groups, d, generator=generator, dtype=torch.float64)
    return centres[torch.arange(n) % groups] + spread * torch.randn(n, d, generator=generator, dtype=torch.float64)


problems = given(
    seed=st.integers(0, 10_000),
    n=st.integers(12, 150),
    k=st.integers(1, 8),
    d=st.integers(1, 6),
    spread=st.sampled_from([0.01, 0.3, 2.0]),
)
few = settings(max_examples=30, deadline=None)


@few
@problems
def test_equals_scikit_learn_from_the_same_start(seed, n, k, d, spread):
    x = blobs(n, d=d, spread=spread, seed=seed)
    init = x[torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:k]]
    ours = kmeans(x, k, init=init, tolerance=0.0, iterations=300)
    theirs = KMeans(k, init=init.numpy(), n_init=1, tol=0.0, max_iter=300, algorithm="lloyd").fit(x.numpy())
    assert ours.inertia == pytest.approx(theirs.inertia_, rel=1e-9, abs=1e-12)
    assert np.array_equal(ours.labels.numpy(), theirs.labels_)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("k", "spread"), [(6, 0.3), (16, 0.3), (8, 2.0)])
def test_inertia_is_scikit_learns(k, spread, weighted):
    x = blobs(600, spread=spread)
    w = torch.rand(600, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) if weighted else None
    ours = kmeans(x, k, restarts=8, weights=w, seed=3)
    theirs = KMeans(k, n_init=8, random_state=3).fit(x.numpy(), sample_weight=None if w is None else w.numpy())
    # Recorded over seeds 0..9: ratios from 0.985 to 1.019, 1.000 on average.
    assert ours.inertia <= 1.03 * theirs.inertia_


def test_points_in_the_head_metric_cluster_as_materialised_edits():
    z = codes(300, groups=5, spread=0.5)
    flat = editor("low_rank").unbounded(z).flat()
    points = metric("low_rank").points(z)
    start = torch.arange(5)
    ours = kmeans(points, 5, init=points[start], tolerance=0.0)
    oracle = KMeans(5, init=flat[start].numpy(), n_init=1, tol=0.0).fit(flat.numpy())
    assert np.array_equal(ours.labels.numpy(), oracle.labels_)
    assert ours.inertia == pytest.approx(oracle.inertia_, rel=1e-9)


@few
@problems
def test_inertia_never_rises_and_labels_are_nearest(seed, n, k, d, spread):
    x = blobs(n, d=d, spread=spread, seed=seed)
    found = kmeans(x, k, seed=seed, restarts=1)
    history = torch.tensor(found.history, dtype=torch.float64)
    assert (history.diff() <= 1e-12 * history[0] + 1e-12).all()
    square = torch.cdist(x, found.centres).square()
    assert torch.equal(square.argmin(1), found.labels)
    assert found.inertia == pytest.approx(float(square.min(1).values.sum()), rel=1e-6, abs=1e-9)
    assert len(found.labels.unique()) == k


@few
@problems
def test_order_of_points_does_not_count(seed, n, k, d, spread):
    x = blobs(n, d=d, spread=spread, seed=seed)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    a, b = kmeans(x, k, init=x[:k]), kmeans(x[order], k, init=x[:k])
    assert torch.equal(a.labels[order], b.labels)
    torch.testing.assert_close(a.centres, b.centres, rtol=1e-10, atol=1e-12)


@few
@problems
def test_a_weight_is_a_number_of_copies(seed, n, k, d, spread):
    x = blobs(n, d=d, spread=spread, seed=seed)
    copies = torch.randint(0, 4, (n,), generator=torch.Generator().manual_seed(seed))
    copies[: k + 1] = 1
    weighted = kmeans(x, k, init=x[:k], weights=copies.double())
    repeated = kmeans(x.repeat_interleave(copies, dim=0), k, init=x[:k])
    torch.testing.assert_close(weighted.centres, repeated.centres, rtol=1e-9, atol=1e-10)


@few
@given(seed=st.integers(0, 1000), cuts=st.lists(st.integers(0, 200), max_size=5))
def test_sums_of_shards_are_those_of_the_whole(seed, cuts):
    x = blobs(200, seed=seed)
    w = torch.rand(200, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    centres = x[:5]
    whole = ClusterSums.of(x, w, centres)
    edges = [0, *sorted(cuts), 200]
    total = ClusterSums.of(x[:0], w[:0], centres)
    for a, b in itertools.pairwise(edges):
        total = total + ClusterSums.of(x[a:b], w[a:b], centres)
    torch.testing.assert_close(total.means(centres), whole.means(centres), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(total.weights, whole.weights)
    assert total.inertia == pytest.approx(whole.inertia, rel=1e-10)


def test_an_iteration_over_shards_is_lloyds():
    x = blobs(300)
    w = torch.ones(300, dtype=torch.float64)
    centres = x[:4].clone()
    for _ in range(30):
        sums = ClusterSums.of(x[:100], w[:100], centres) + ClusterSums.of(x[100:], w[100:], centres)
        centres = sums.means(centres)
    torch.testing.assert_close(centres, kmeans(x, 4, init=x[:4], tolerance=0.0).centres, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_chunks_do_not_change_the_result(monkeypatch, dtype):
    x = blobs(300).to(dtype)
    whole = kmeans(x, 5, seed=2)
    monkeypatch.setattr("persona.prototypes.clustering.CHUNK", 17)
    monkeypatch.setattr("persona.prototypes.clustering.CHUNK", 13)
    pieces = kmeans(x, 5, seed=2)
    assert torch.equal(whole.labels, pieces.labels)
    torch.testing.assert_close(whole.centres, pieces.centres, rtol=1e-10, atol=1e-12)


def test_a_seed_determines_everything():
    x = blobs(200, spread=2.0)
    torch.manual_seed(1)
    a = kmeans(x, 7, seed=5)
    torch.manual_seed(2)
    b = kmeans(x, 7, seed=5)
    assert torch.equal(a.labels, b.labels)
    assert torch.equal(a.centres, b.centres)
    assert not torch.equal(a.centres, kmeans(x, 7, seed=6, restarts=1).centres)


def test_restarts_on_a_sample_end_on_all_points(monkeypatch):
    monkeypatch.setattr("persona.prototypes.clustering.SAMPLE", 0)
    x = blobs(256 * 3 + 500, groups=3)
    found = kmeans(x, 3, seed=1)
    assert len(found.labels) == len(x)
    assert found.inertia == pytest.approx(KMeans(3, n_init=4, random_state=0).fit(x.numpy()).inertia_, rel=1e-3)


def test_an_empty_cluster_takes_the_farthest_point():
    x = torch.tensor([[0.0], [0.1], [0.2], [10.0], [10.1], [50.0]], dtype=torch.float64)
    init = torch.tensor([[0.0], [10.0], [1e3], [2e3]], dtype=torch.float64)
    found = kmeans(x, 4, init=init)
    assert len(found.labels.unique()) == 4
    assert found.converged
    assert int((found.labels == found.labels[5]).sum()) == 1


def test_points_without_weight_are_labelled_but_do_not_count():
    x = torch.tensor([[0.0], [1.0], [10.0], [100.0]], dtype=torch.float64)
    found = kmeans(x, 2, weights=torch.tensor([1.0, 1.0, 1.0, 0.0]))
    assert sorted(found.centres.flatten().tolist()) == [0.5, 10.0]
    assert found.labels[3] == found.labels[2]


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_fewer_distinct_points_than_clusters_are_refused(offset):
    x = offset + torch.tensor([[0.1], [0.3], [0.7]], dtype=torch.float64).repeat(20, 1)
    assert len(kmeans(x, 3).labels.unique()) == 3
    with pytest.raises(DataError, match="only 3 distinct edits for k = 4"):
        kmeans(x, 4)
    with pytest.raises(DataError, match="only about 3 distinct edits for k = 4"):
        kmeans(x, 4, init=torch.cat([x[:3], x[:1]]))


@pytest.mark.parametrize(
    ("error", "arguments"),
    [
        (ConfigError, {"k": 0}),
        (ConfigError, {"k": 2, "restarts": 0}),
        (ConfigError, {"k": 2, "init": torch.zeros(3, 5)}),
        (DataError, {"k": 2, "weights": torch.ones(3)}),
        (DataError, {"k": 2, "weights": -torch.ones(400)}),
        (DataError, {"k": 2, "weights": torch.zeros(400)}),
        (DataError, {"k": 2, "points": torch.zeros(0, 5)}),
        (DataError, {"k": 2, "points": torch.full((5, 2), torch.nan)}),
    ],
)
def test_what_is_refused(error, arguments):
    with pytest.raises(error):
        kmeans(**({"points": blobs()} | arguments))


def test_points_and_weights_are_left_alone():
    x, w = blobs(50), torch.rand(50, dtype=torch.float64)
    copies = x.clone(), w.clone()
    kmeans(x, 3, weights=w)
    assert torch.equal(x, copies[0])
    assert torch.equal(w, copies[1])


def test_a_cluster_that_empties_in_the_last_iteration_is_filled_too():
    x = torch.tensor([[1.0], [7.0], [10.0], [11.0], [3.0], [8.0], [3.0]], dtype=torch.float64)
    # One update moves the last centre between two others, each of which is at least as near to its members.
    init = torch.tensor([[3.25], [11.25], [5.25], [9.25]], dtype=torch.float64)
    found = kmeans(x, 4, init=init, iterations=1)
    assert not found.converged
    assert found.labels.unique().tolist() == [0, 1, 2, 3]
    assert int((found.labels == 3).sum()) == 1
    assert float(found.centres[3]) == float(x[found.labels == 3])


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(8, 60), k=st.integers(1, 8))
def test_seeds_are_distinct_points(seed, n, k):
    x = torch.randn(n, 3, generator=_generator(seed), dtype=torch.float64)
    seeds = plus_plus(x, k, torch.ones(n, dtype=torch.float64), _generator(seed), distance_floor(x))
    assert all((x == s).all(1).any() for s in seeds)
    assert len(seeds.unique(dim=0)) == k


def test_far_groups_get_a_seed_each():
    """Four groups far apart: D^2 weighting finds all of them, uniform choice would in 9 % of the tries."""
    x = torch.randn(400, 2, generator=_generator()) + 1e3 * torch.arange(4).repeat(100).unsqueeze(1)
    for seed in range(20):
        seeds = plus_plus(x, 4, torch.ones(400, dtype=torch.float64), _generator(seed), distance_floor(x))
        assert sorted((seeds[:, 0] / 1e3).round().tolist()) == [0, 1, 2, 3]


def test_the_first_seed_is_drawn_by_weight():
    x = torch.arange(4.0).unsqueeze(1)
    w = torch.tensor([0.0, 1.0, 0.0, 3.0], dtype=torch.float64)
    drawn = torch.stack([plus_plus(x, 1, w, _generator(seed), 0.0)[0, 0] for seed in range(400)])
    assert set(drawn.tolist()) == {1.0, 3.0}
    # 0.75 +- 4 standard errors
    assert abs(float((drawn == 3.0).double().mean()) - 0.75) < 4 * math.sqrt(0.75 * 0.25 / 400)


def test_copies_are_not_distinct():
    x = torch.tensor([[0.1, 0.2], [0.7, 0.3]]).repeat(30, 1)
    with pytest.raises(DataError, match="only 2 distinct edits for k = 3"):
        plus_plus(x, 3, torch.ones(60, dtype=torch.float64), _generator(), distance_floor(x))
