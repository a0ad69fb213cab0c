import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from persona.errors import ConfigError, DataError
from persona.prototypes import adjusted_rand_index, choose_k
from tests.persona.prototypes.world import codes, editor, users


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 60), a=st.integers(1, 6), b=st.integers(1, 6), seed=st.integers(0, 1000))
def test_the_index_is_scikit_learns(n, a, b, seed):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randint(a, (n,), generator=generator), torch.randint(b, (n,), generator=generator)
    assert adjusted_rand_index(x, y) == pytest.approx(adjusted_rand_score(x.numpy(), y.numpy()), abs=1e-12)


def _score(values):
    return lambda bank: values[len(bank)]


def test_the_smallest_k_near_the_best_is_chosen():
    z = codes(120, groups=3)
    values = {1: 0.0, 2: 0.5, 3: 0.98, 4: 1.0}
    choice = choose_k(editor(), z, [4, 2, 1, 3], _score(values), tolerance=0.05, users=users(120, 40))
    assert choice.k == 3
    assert [c.k for c in choice.candidates] == [1, 2, 3, 4]
    assert [c.score for c in choice.candidates] == [0.0, 0.5, 0.98, 1.0]
    assert choose_k(editor(), z, [4, 2, 1, 3], _score(values), tolerance=0.0).k == 4
    assert choice.as_dict()["candidates"][0]["k"] == 1


def test_sizes_beyond_the_distinct_edits_are_left_out():
    z = codes(3)[[0, 1] * 20]
    choice = choose_k(editor(), z, [1, 2, 4, 8], lambda bank: float(len(bank)), tolerance=0.0)
    assert [c.k for c in choice.candidates] == [1, 2]
    assert choice.k == 2
    with pytest.raises(DataError, match="choose a smaller k"):
        choose_k(editor(), z, [4], len, tolerance=0.0)


def test_stability_tells_real_groups_from_chance():
    z = codes(120, groups=3)
    choice = choose_k(editor(), z, [3, 9], lambda bank: 1.0 * len(bank), tolerance=0.0)
    three, nine = choice.candidates
    assert three.stability_seeds == three.stability_halves == 1.0
    assert nine.stability_halves < 0.9
    assert nine.inertia < three.inertia
    steady = choose_k(editor(), z, [3, 9], lambda bank: 1.0 * len(bank), tolerance=0.0, min_stability=0.95)
    assert (choice.k, steady.k) == (9, 3)


def test_if_no_k_is_stable_the_score_decides():
    z = codes(60)
    assert choose_k(editor(), z, [2, 5], lambda b: float(len(b)), tolerance=0.0, min_stability=1.1).k == 5


def test_weights_and_users_take_part():
    z = codes(60, groups=2)
    weights = torch.ones(60, dtype=torch.float64)
    choice = choose_k(
        editor(), z, [2], lambda b: float(b.members.sum()), tolerance=0.0, weights=weights, users=users(60, 10)
    )
    assert choice.candidates[0].score == 60
    assert choice.candidates[0].score_std == 0


def test_what_is_refused():
    z = codes(30)
    for bad in ({"ks": []}, {"seeds": (1, 1)}, {"tolerance": -1.0}):
        with pytest.raises(ConfigError):
            choose_k(**({"editor": editor(), "codes": z, "ks": [2], "score": len, "tolerance": 0.0} | bad))
    with pytest.raises(DataError, match="2 prototypes is not finite"):
        choose_k(editor(), z, [2], lambda b: float("nan"), tolerance=0.0)
    with pytest.raises(DataError, match="3 and 2 labels"):
        adjusted_rand_index(torch.zeros(3).long(), torch.zeros(2).long())
