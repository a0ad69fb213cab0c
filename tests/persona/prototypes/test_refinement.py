import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from persona.errors import ConfigError, DataError, MismatchError
from persona.prototypes import Assigner, RefineConfig, UserStatistics, fit_bank, merge, refine, same_prototypes
from persona.prototypes.algebra import to_dtype
from tests.persona.prototypes.world import HEADS, by_head, codes, editor, metric, partition, users, window
from tests.persona.toy import random_edit

# No limits but those that a test sets.
FREE = RefineConfig(
    eta=1.0, cap=1e9, trim=0.0, min_users=1, budget=1e9, split_saving=1.0, max_missed=1.0, retire_after=0
)
few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 10_000)


def _free(**changes):
    return dataclasses.replace(FREE, **changes)


def _drifted(n=200, seed=1, head="full", people=30):
    """A window of contexts that have moved away from the partition's."""
    z = torch.tanh(codes(n, groups=4) + 0.3 * codes(1, seed))
    return window(partition(head), z, users(n, people, seed), head)


@few
@given(seed=seeds, head=st.sampled_from(HEADS), eta=st.floats(0.01, 1.0))
def test_a_step_is_eta_of_the_mean_remaining_edit(seed, head, eta):
    """Against materialised edits, for prototypes inside and outside what codes make."""
    bank = partition(head).bank
    free = to_dtype(bank.prototypes.dense() + random_edit(4, seed, scale=0.05), torch.float32)
    bank = dataclasses.replace(bank, prototypes=free)
    z, m = codes(80, seed), metric(head)
    nearest = Assigner(m, bank.prototypes)(z).prototypes
    stats = UserStatistics.collect(z, torch.zeros(80, dtype=torch.int64), nearest, 4)
    found = refine(bank, m, stats, _free(eta=eta))
    remaining = editor(head).unbounded(z).flat() - bank.prototypes.flat()[nearest]
    for j in range(4):
        mean = remaining[nearest == j].mean(0) if (nearest == j).any() else 0 * remaining[0]
        expected = bank.prototypes.flat()[j] + eta * mean
        torch.testing.assert_close(found.bank.prototypes.flat()[j].double(), expected, rtol=1e-4, atol=1e-5)


@by_head
def test_eta_zero_changes_nothing(head):
    bank = partition(head).bank
    found = refine(bank, metric(head), _drifted(head=head), RefineConfig(eta=0.0, min_users=1))
    assert same_prototypes(found.bank, bank)
    assert torch.equal(found.bank.centres, bank.centres)
    assert found.movement.abs().max() == 0
    assert len(found.moved) == 0
    assert found.bank.version != bank.version
    assert found.bank.parent == bank.version


@few
@given(seed=seeds, head=st.sampled_from(HEADS), budget=st.floats(1e-3, 0.3), eta=st.floats(0.1, 1.0))
def test_no_prototype_moves_farther_than_the_budget(seed, head, budget, eta):
    stats, bank, m = _drifted(seed=seed, head=head), partition(head).bank, metric(head)
    free = refine(bank, m, stats, _free(eta=eta))
    for unit, limit in (("absolute", budget), ("weights", budget * m.weight_norm)):
        found = refine(bank, m, stats, _free(eta=eta, budget=budget, budget_unit=unit))
        moved = found.movement.square().sum(1).sqrt()
        assert (moved <= limit * (1 + 1e-4) + 1e-6).all()
        expected = free.movement.square().sum(1).sqrt().clamp_max(limit)
        torch.testing.assert_close(moved.double(), expected.double(), rtol=1e-3, atol=1e-5)
        difference = (found.bank.prototypes - bank.prototypes).layer_norms()
        torch.testing.assert_close(found.movement, difference)


@few
@given(seed=seeds, repeat=st.sampled_from([1, 10, 3000]))
def test_one_user_moves_a_prototype_by_at_most_their_share(seed, repeat):
    bank, m, cap = partition().bank, metric(), 3.0
    others, mine = codes(60, seed, groups=4), codes(1, seed + 1, groups=1, spread=1.0)
    nearest = Assigner(m, bank.prototypes)
    where, at = nearest(others).prototypes, nearest(mine).prototypes
    who = torch.arange(60)
    honest = UserStatistics.collect(others, who, where, 4)
    attack = honest + UserStatistics.collect(
        mine.expand(repeat, -1, -1), torch.full((repeat,), 77), at.expand(repeat), 4
    )
    config = _free(eta=0.7, cap=cap)
    a, b = refine(bank, m, honest, config).bank, refine(bank, m, attack, config).bank
    shift = (b.prototypes - a.prototypes).norm()
    target = int(at)
    assert (shift[torch.arange(4) != target] == 0).all()
    weight = float((where == target).sum())
    share = min(repeat, cap) / (weight + min(repeat, cap))
    reach = (m.edits(mine) - m.edits(others[where == target].mean(0, keepdim=True))).norm()
    assert float(shift[target]) == pytest.approx(0.7 * share * float(reach), rel=1e-3, abs=1e-5)


@settings(max_examples=10, deadline=None)
@given(seed=seeds, shards=st.integers(1, 5))
def test_shards_and_the_order_of_users_do_not_count(seed, shards):
    bank, m = partition().bank, metric()
    z, who = torch.tanh(codes(150, seed, groups=4) + 0.2), users(150, 40, seed)
    where = Assigner(m, bank.prototypes)(z).prototypes
    config = RefineConfig(min_users=2)
    whole = refine(bank, m, UserStatistics.collect(z, who, where, 4), config)
    generator = torch.Generator().manual_seed(seed)
    order, shard = torch.randperm(150, generator=generator), torch.randint(shards, (150,), generator=generator)
    parts = []
    for s in range(shards):
        rows = order[shard[order] == s]
        parts.append(UserStatistics.collect(z[rows], who[rows], where[rows], 4))
    names = torch.randperm(40, generator=generator)
    for stats in (merge(parts), UserStatistics.collect(z, names[who], where, 4)):
        again = refine(bank, m, stats, config)
        torch.testing.assert_close(again.bank.prototypes.flat(), whole.bank.prototypes.flat(), rtol=1e-6, atol=1e-6)
        assert torch.equal(again.flow, whole.flow)
        assert len(again.moved) == len(whole.moved)


@by_head
def test_centres_follow_prototypes_that_codes_make(head):
    found = refine(partition(head).bank, metric(head), _drifted(head=head), _free(eta=0.5, budget=0.2)).bank
    made = metric(head).edits(found.centres).flat()
    torch.testing.assert_close(found.prototypes.flat().double(), made, rtol=1e-4, atol=1e-5)


def test_a_small_cohort_does_not_move_its_prototype():
    part, m = partition(), metric()
    z = torch.tanh(codes(80, groups=4) + 0.2)
    where = Assigner(m, part.bank.prototypes)(codes(80, groups=4)).prototypes
    lonely = int(where[0])
    who = torch.where(where == lonely, where % 2, torch.arange(80))
    found = refine(part.bank, m, UserStatistics.collect(z, who, where, 4), _free(min_users=5))
    moved = found.movement.sum(1) > 0
    assert not moved[lonely]
    assert moved.sum() == 3
    assert found.held == (lonely,)
    assert torch.equal(found.bank.prototypes.flat()[lonely], part.bank.prototypes.flat()[lonely])


def test_refining_lowers_the_remaining_energy_of_the_window():
    stats, bank, m = _drifted(), partition().bank, metric()

    def energy(b):
        rows = Assigner(m, b.prototypes).distances_to(stats.means(), stats.prototypes)
        return float((stats.counts * rows.square()).sum())

    assert energy(refine(bank, m, stats, _free()).bank) < energy(refine(bank, m, stats, _free(eta=0.3)).bank)
    assert energy(refine(bank, m, stats, _free(eta=0.3)).bank) < energy(bank)


def _two_groups():
    """One prototype whose members are two groups; 40 users, the first group three times as large."""
    z = codes(160, groups=1, spread=0.05)
    z[:40] = codes(40, groups=1, spread=0.05, place=1)
    who = torch.cat([torch.arange(10).repeat(4), 10 + torch.arange(30).repeat(4)])
    return fit_bank(editor(), z, 1).bank, UserStatistics.collect(z, who, torch.zeros(160, dtype=torch.int64), 1), z


def test_a_prototype_of_two_groups_is_split():
    bank, stats, z = _two_groups()
    found = refine(bank, metric(), stats, _free(split_saving=0.05, min_users=5))
    assert found.split == ((0, 1),)
    assert found.bank.origin.tolist() == [0, 0]
    assert found.bank.members.tolist() == [120, 40]
    flat = editor().unbounded(z).flat()
    expected = torch.stack([flat[40:].mean(0), flat[:40].mean(0)])
    torch.testing.assert_close(found.bank.prototypes.flat().double(), expected, rtol=1e-4, atol=1e-5)
    assert found.flow.tolist() == [[30, 10]]
    assert found.moved.tolist() == list(range(10))
    assert found.movement.shape == (2, 2)


@pytest.mark.parametrize(
    "limits", [{"min_users": 11}, {"split_saving": 1.0}, {"bimodality": 1.0}, {"max_prototypes": 1}, {"eta": 0.0}]
)
def test_limits_on_splitting(limits):
    bank, stats, _ = _two_groups()
    found = refine(bank, metric(), stats, _free(**({"split_saving": 0.05, "min_users": 5} | limits)))
    assert found.split == ()
    assert len(found.bank) == 1


def test_one_group_is_not_split():
    z = codes(200, groups=1, spread=0.5)
    bank = fit_bank(editor(), z, 1).bank
    stats = UserStatistics.collect(z, torch.arange(200), torch.zeros(200, dtype=torch.int64), 1)
    assert refine(bank, metric(), stats, _free(split_saving=0.01, min_users=5)).split == ()


def test_one_wide_group_is_split_until_no_prototype_misses_too_much():
    z = 2 * torch.rand(400, 1, 1, generator=torch.Generator().manual_seed(0)) * codes(1, groups=1)
    m, bank = metric(), fit_bank(editor(), z, 1).bank
    config = _free(split_saving=0.02, min_users=5, max_missed=0.01)

    def window_of(b):
        return UserStatistics.collect(z, torch.arange(400), Assigner(m, b.prototypes)(z).prototypes, len(b))

    def missed(b):
        found = Assigner(m, b.prototypes)(z)
        own = torch.zeros(len(b), dtype=torch.float64).index_add_(0, found.prototypes, found.distances.square())
        return own / torch.zeros_like(own).index_add_(0, found.prototypes, m.energies(z))

    assert float(missed(bank)) > 0.01
    first = refine(bank, m, window_of(bank), config)
    assert first.split == ((0, 1),)
    wide = dataclasses.replace(config, max_missed=min(1.0, float(missed(bank)) + 0.01))
    assert refine(bank, m, window_of(bank), wide).split == ()
    found = first
    for _ in range(8):
        found = refine(found.bank, m, window_of(found.bank), config)
    assert found.split == ()
    assert (missed(found.bank) < 0.01).all()


def test_parts_of_a_split_keep_to_the_budget():
    bank, stats, _ = _two_groups()
    found = refine(bank, metric(), stats, _free(split_saving=0.05, min_users=5, budget=0.1, budget_unit="absolute"))
    torch.testing.assert_close(found.movement.square().sum(1).sqrt(), torch.full((2,), 0.1), rtol=1e-3, atol=0)


def test_a_prototype_without_contexts_is_retired_after_some_versions():
    bank, m = partition().bank, metric()
    z = codes(200, groups=4)
    lonely = int(Assigner(m, bank.prototypes)(z).prototypes[0])
    for version in range(3):
        where = Assigner(m, bank.prototypes)(z).prototypes
        others = where != lonely
        stats = UserStatistics.collect(z[others], torch.arange(200)[others], where[others], len(bank))
        found = refine(bank, m, stats, _free(retire_after=3))
        assert found.retired == ((lonely,) if version == 2 else ())
        if version < 2:
            assert found.bank.idle[lonely] == version + 1
            assert torch.equal(found.bank.prototypes.flat()[lonely], bank.prototypes.flat()[lonely])
        bank = found.bank
    assert bank.origin.tolist() == [j for j in range(4) if j != lonely]
    assert bank.idle.tolist() == [0, 0, 0]


def test_a_context_ends_idleness():
    bank = dataclasses.replace(partition().bank, idle=torch.full((4,), 2))
    found = refine(bank, metric(), _drifted(), _free(retire_after=3))
    assert found.bank.idle.tolist() == [0, 0, 0, 0]
    assert found.retired == ()


def test_users_of_a_retired_prototype_count_as_moved():
    bank, m, z = partition().bank, metric(), codes(40, groups=4)
    bank = dataclasses.replace(bank, idle=torch.full((4,), 5))
    where = Assigner(m, bank.prototypes)(z).prototypes
    gone = int(where[0])
    # A user between two prototypes, whose mean context belongs to one that nobody came to.
    stats = UserStatistics.collect(z, torch.arange(40), where, 4)
    forced = dataclasses.replace(stats, prototypes=torch.where(where == gone, (gone + 1) % 4, where))
    found = refine(bank, m, forced, _free(retire_after=1, eta=0.01))
    assert found.retired == (gone,)
    assert found.moved.tolist() == torch.nonzero(where == gone).squeeze(1).tolist()
    assert found.flow.shape == (4, 3)
    assert found.flow.sum() == 40


def test_the_report_is_json_without_identities():
    found = refine(partition().bank, metric(), _drifted(), RefineConfig(min_users=2))
    report = found.report()
    assert report["k"] == 4
    assert report["moved_users"] == len(found.moved)
    assert sum(report["contexts"]) == 200
    assert "moved" not in report
    assert found.bank.metadata["config"]["min_users"] == 2


@pytest.mark.parametrize(
    "settings_",
    [
        {"eta": 1.5},
        {"eta": -0.1},
        {"trim": 0.6},
        {"cap": 0},
        {"min_users": 0},
        {"budget": 0},
        {"budget_unit": "percent"},
        {"bimodality": 2},
        {"split_saving": -1},
        {"max_missed": 1.5},
        {"max_prototypes": 257},
        {"retire_after": -1},
        {"eta": float("nan")},
    ],
)
def test_settings_out_of_range_are_refused(settings_):
    with pytest.raises(ConfigError, match=next(iter(settings_))):
        RefineConfig(**settings_)


def test_what_does_not_belong_together_is_refused():
    stats, bank = _drifted(), partition().bank
    with pytest.raises(MismatchError, match="editor"):
        refine(bank, metric("low_rank"), stats)
    with pytest.raises(MismatchError, match="4 prototypes, but the bank has 3"):
        refine(partition(k=3).bank, metric(), stats)
    nobody = UserStatistics.collect(codes(0), users(0, 1), users(0, 1), 4)
    with pytest.raises(DataError, match="not a single context"):
        refine(bank, metric(), nobody)
