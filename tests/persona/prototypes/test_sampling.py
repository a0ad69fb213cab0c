import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from persona.errors import ConfigError, DataError, MismatchError
from persona.prototypes import CodeSample, merge_samples
from persona.prototypes.sampling import priorities
from tests.persona.prototypes.world import codes, users

N = 80


def _stream(seed=0):
    return codes(N, seed), users(N, 7, seed), torch.arange(N)


def _equal(a, b):
    assert all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("priorities", "users", "codes"))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), size=st.integers(1, 100), shards=st.integers(1, 6))
def test_the_sample_does_not_depend_on_the_cut_the_order_or_repetition(seed, size, shards):
    z, who, events = _stream(seed)
    cut = torch.randint(shards, (N,), generator=torch.Generator().manual_seed(seed))
    parts = [CodeSample.collect(z[m], who[m], events[m], size) for m in (cut == s for s in range(shards))]
    whole = CodeSample.collect(z, who, events, size)
    assert len(whole) == min(size, N)
    _equal(merge_samples(parts), whole)
    _equal(merge_samples([*parts[::-1], parts[0]]), whole)
    one_by_one = parts[0]
    for part in parts[1:]:
        one_by_one = one_by_one + part
    _equal(one_by_one, whole)


def test_every_context_is_as_likely_as_any_other():
    z, who, events = _stream()
    times = torch.zeros(N)
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


def test_what_is_refused():
    z, who, events = _stream()
    with pytest.raises(ConfigError, match="at least 1"):
        CodeSample.collect(z, who, events, 0)
    with pytest.raises(DataError, match="80, 79 and 80 rows"):
        CodeSample.collect(z, who[1:], events, 5)
    with pytest.raises(DataError, match="not finite"):
        CodeSample.collect(z.masked_fill(z > 0, torch.nan), who, events, N)
    with pytest.raises(MismatchError, match="alike"):
        CodeSample.collect(z, who, events, 5) + CodeSample.collect(z, who, events, 6)
