from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from persona.errors import ConfigError, DataError, MismatchError
from persona.prototypes import CodeBlock, CodeSample, adjusted_rand_index, fit_bank, fit_bank_streamed, merge_samples
from persona.prototypes.assign import Assigner
from persona.prototypes.streaming import priorities
from tests.persona.prototypes.world import by_head, codes, editor, metric, users

N, K = 600, 5
IN_STREAM = 80


def blocks(z, who, size, events=None):
    events = torch.arange(len(z)) if events is None else events
    pieces = zip(torch.split(z, size), torch.split(who, size), torch.split(events, size), strict=True)
    made = [CodeBlock(*piece) for piece in pieces]
    return lambda: iter(made)


def workers(count, work):
    """Runs ``work(rank, gather)`` on so many threads that gather from each other."""
    barrier, places = Barrier(count, timeout=60), [None] * count

    def gatherer(rank):
        def gather(own):
            places[rank] = own
            barrier.wait()
            found = list(places)
            barrier.wait()
            return found

        return gather

    with ThreadPoolExecutor(count) as pool:
        return [f.result() for f in [pool.submit(work, rank, gatherer(rank)) for rank in range(count)]]


@by_head
@pytest.mark.parametrize("space", ["edits", "codes"])
def test_separate_groups_are_found_exactly_as_in_memory(head, space):
    z, who = codes(N, groups=K), users(N, 30)
    exact = fit_bank(editor(head), z, K, space=space)
    made = fit_bank_streamed(editor(head), blocks(z, who, 97), K, space=space, sample_size=100)
    assert made.converged
    assert made.contexts == N
    assert made.history[-1] == pytest.approx(exact.inertia, rel=1e-9)
    labels = Assigner(metric(head), made.bank.prototypes)(z).prototypes
    assert adjusted_rand_index(labels, exact.labels) == 1.0
    order = made.bank.prototypes.flat()[:, 0].argsort()
    other = exact.bank.prototypes.flat()[:, 0].argsort()
    torch.testing.assert_close(made.bank.prototypes.flat()[order], exact.bank.prototypes.flat()[other])
    torch.testing.assert_close(made.bank.members[order], exact.bank.members[other])


@pytest.mark.parametrize(("sweeps", "tolerance"), [(0, 0.05), (20, 0.01)])
def test_inertia_of_blurred_groups_is_near_that_of_scikit_learn(sweeps, tolerance):
    """What is recorded in docs/scale.md: within 5 % from a sample of a fifth alone, within 1 % with sweeps."""
    z, who = codes(4000, groups=8, spread=0.8), users(4000, 100)
    oracle = KMeans(8, n_init=10, random_state=0).fit(metric().points(z).flatten(1).numpy()).inertia_
    made = fit_bank_streamed(editor(), blocks(z, who, 512), 8, sample_size=800, sweeps=sweeps)
    assert made.history[-1] <= (1 + tolerance) * oracle


def test_sweeps_never_make_it_worse():
    z, who = codes(2000, groups=8, spread=0.8), users(2000, 50)
    made = fit_bank_streamed(editor(), blocks(z, who, 300), 8, sample_size=100)
    assert len(made.history) > 3
    assert all(b <= a * (1 + 1e-12) for a, b in zip(made.history, made.history[1:], strict=False))
    assert made.bank.metadata["sweeps"] == len(made.history) - 1


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(1, 4), size=st.integers(20, 400))
def test_the_bank_does_not_depend_on_how_the_stream_was_cut(seed, count, size):
    z, who = codes(N, groups=4, spread=0.6), users(N, 40)
    whole = fit_bank_streamed(editor(), blocks(z, who, N), 4, sample_size=150, keep_statistics=True)
    generator = torch.Generator().manual_seed(seed)
    owner, order = torch.randint(count, (N,), generator=generator), torch.randperm(N, generator=generator)

    def work(rank, gather):
        rows = order[owner[order] == rank]
        stream = blocks(z[rows], who[rows], size, rows)
        return fit_bank_streamed(editor(), stream, 4, sample_size=150, keep_statistics=True, gather=gather)

    made = workers(count, work)
    assert len({m.bank.version for m in made}) == 1
    torch.testing.assert_close(made[0].bank.prototypes.flat(), whole.bank.prototypes.flat(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(made[0].bank.members, whole.bank.members)
    assert made[0].history == pytest.approx(whole.history, rel=1e-9)
    merged = made[0].statistics
    for other in made[1:]:
        merged = merged + other.statistics
    assert torch.equal(merged.users, whole.statistics.users)
    torch.testing.assert_close(merged.sums, whole.statistics.sums)


def test_an_empty_cluster_gets_a_context_of_the_sample():
    """The sample sees one far group only; the sweeps find a centre that serves nobody, and must fill it."""
    from persona.prototypes.streaming import _refilled

    points = torch.tensor([[0.0], [1.0], [10.0]], dtype=torch.float64)
    centres = torch.tensor([[0.5], [90.0]], dtype=torch.float64)
    filled = _refilled(centres, torch.tensor([3.0, 0.0]), points)
    assert filled.tolist() == [[0.5], [10.0]]


def test_what_is_refused():
    z, who = codes(40), users(40, 5)
    with pytest.raises(DataError, match="not a single context"):
        fit_bank_streamed(editor(), lambda: iter(()), 2)
    with pytest.raises(ConfigError, match="sweeps"):
        fit_bank_streamed(editor(), blocks(z, who, 10), 2, sweeps=-1)
    with pytest.raises(DataError, match="distinct edits"):
        fit_bank_streamed(editor(), blocks(z[:1].expand(40, -1, -1), who, 10), 2)
    with pytest.raises(MismatchError, match="codes"):
        fit_bank_streamed(editor(), blocks(z[:, :1], who, 10), 2)


def _stream(seed=0):
    return codes(IN_STREAM, seed), users(IN_STREAM, 7, seed), torch.arange(IN_STREAM)


def _equal(a, b):
    assert all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("priorities", "users", "codes"))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), size=st.integers(1, 100), shards=st.integers(1, 6))
def test_the_sample_does_not_depend_on_the_cut_the_order_or_repetition(seed, size, shards):
    z, who, events = _stream(seed)
    cut = torch.randint(shards, (IN_STREAM,), generator=torch.Generator().manual_seed(seed))
    parts = [CodeSample.collect(z[m], who[m], events[m], size) for m in (cut == s for s in range(shards))]
    whole = CodeSample.collect(z, who, events, size)
    assert len(whole) == min(size, IN_STREAM)
    _equal(merge_samples(parts), whole)
    _equal(merge_samples([*parts[::-1], parts[0]]), whole)
    one_by_one = parts[0]
    for part in parts[1:]:
        one_by_one = one_by_one + part
    _equal(one_by_one, whole)


def test_every_context_is_as_likely_as_any_other():
    z, who, events = _stream()
    times = torch.zeros(IN_STREAM)
    for seed in range(400):
        kept = torch.isin(priorities(who, events, seed), CodeSample.collect(z, who, events, 20, seed).priorities)
        times += kept
    # 400 draws of a quarter: 100 on average, standard deviation 8.7.
    assert times.sum() == 400 * 20
    assert 60 < times.min() <= times.max() < 140


def test_priorities_tell_users_events_and_seeds_apart():
    grid = torch.cartesian_prod(torch.arange(100), torch.arange(100))
    found = priorities(grid[:, 0], grid[:, 1], 0)
    assert len(found.unique()) == len(grid)
    assert found.min() >= 0
    assert 0.49 < found.double().mean() / 2**63 < 0.51
    assert not torch.equal(found, priorities(grid[:, 1], grid[:, 0], 0))
    assert not torch.equal(found, priorities(grid[:, 0], grid[:, 1], 1))


def test_samples_that_are_refused():
    z, who, events = _stream()
    with pytest.raises(ConfigError, match="at least 1"):
        CodeSample.collect(z, who, events, 0)
    with pytest.raises(DataError, match="80, 79 and 80 rows"):
        CodeSample.collect(z, who[1:], events, 5)
    with pytest.raises(DataError, match="not finite"):
        CodeSample.collect(z.masked_fill(z > 0, torch.nan), who, events, IN_STREAM)
    with pytest.raises(MismatchError, match="alike"):
        CodeSample.collect(z, who, events, 5) + CodeSample.collect(z, who, events, 6)
