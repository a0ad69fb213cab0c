import dataclasses
import shutil

import pytest
import torch

from persona.errors import ConfigError, MismatchError
from persona.prototypes import (
    Assigner,
    Lineage,
    RefineConfig,
    UserStatistics,
    fit_bank,
    forget,
    refine,
    same_prototypes,
    specialise,
)
from tests.persona.killing import RENAMES, kill_points
from tests.persona.prototypes.world import by_head, codes, editor, metric, users
from tests.persona.toy import HOST

CONFIG = RefineConfig(min_users=3, eta=0.6, cap=2.0, trim=0.15, budget=0.15, split_saving=0.05)
K, PEOPLE, N = 4, 25, 200


def _events(seed, head):
    """(codes, users) of the training contexts (seed 0) or of a window that drifts away from them."""
    return torch.tanh(codes(N, seed, groups=K, spread=0.3) + 0.15 * seed), users(N, PEOPLE, seed)


def _history(tmp_path, head, windows=3):
    """A lineage of a fit and refinements, and the prototype that every context was counted to."""
    lineage, m = Lineage(tmp_path, HOST), metric(head)
    z, who = _events(0, head)
    part = fit_bank(editor(head), z, K, users=who)
    lineage.save(part.bank, part.statistics)
    bank, where = part.bank, [part.labels]
    for seed in range(1, windows + 1):
        z, who = _events(seed, head)
        where.append(Assigner(m, bank.prototypes)(z).prototypes)
        stats = UserStatistics.collect(z, who, where[-1], len(bank))
        found = refine(bank, m, stats, CONFIG)
        lineage.save(found.bank, stats, found.report())
        bank = found.bank
    return lineage, where


def _rebuilt(head, where, user):
    """The banks made from all events but the user's, by materialised edits and contexts instead of sums."""
    m = metric(head)
    z, who = _events(0, head)
    mine = who != user
    flat = editor(head).unbounded(z).flat()
    prototypes = torch.stack([flat[mine & (where[0] == j)].mean(0) for j in range(K)])
    yield prototypes
    for seed, labels in enumerate(where[1:], start=1):
        z, who = _events(seed, head)
        flat = editor(head).unbounded(z).flat()
        prototypes = _refined(prototypes, flat, who, labels, user, m)
        yield prototypes


def _refined(prototypes, flat, who, labels, user, m):
    """The formula of refinement, written plainly: per user a mean edit, weight min(n, cap), the farthest 15 % left out."""
    limit = CONFIG.budget * m.weight_norm
    after = prototypes.clone()
    for j in range(len(prototypes)):
        rows = []
        for u in range(PEOPLE):
            edits = flat[(who == u) & (labels == j)]
            if u != user and len(edits):
                mean = edits.mean(0)
                rows.append((float((mean - prototypes[j]).norm()), min(len(edits), CONFIG.cap), mean))
        rows.sort(key=lambda row: row[0])
        total, reached, kept = sum(row[1] for row in rows), 0.0, []
        while rows and reached < (1 - CONFIG.trim) * total - 1e-9:
            reached += rows[0][1]
            kept.append(rows.pop(0))
        if len(kept) >= CONFIG.min_users:
            target = sum(w * mean for _, w, mean in kept) / sum(w for _, w, _ in kept)
            step = CONFIG.eta * (target - prototypes[j])
            after[j] += step * min(1.0, limit / float(step.norm()))
    return after


def _all(lineage):
    return [lineage.load(r.version) for r in lineage.history()]


@by_head
@pytest.mark.parametrize("user", [0, 7, 13])
def test_forgetting_equals_a_rebuild_without_the_user(tmp_path, head, user):
    lineage, where = _history(tmp_path, head)
    before = _all(lineage)
    done = forget(lineage, user, metric(head))
    after = _all(lineage)
    assert len(after) == 4
    assert done.dropped == ()
    assert lineage.head == done.head == after[-1].version
    assert list(done.replaced) == [b.version for b in before]
    for bank, old, expected in zip(after, before, _rebuilt(head, where, user), strict=True):
        torch.testing.assert_close(bank.prototypes.flat().double(), expected, rtol=1e-4, atol=1e-5)
        assert (bank.prototypes.flat() - old.prototypes.flat()).abs().max() > 1e-4
        assert torch.equal(bank.basis.directions.flat(), old.basis.directions.flat())


def test_no_trace_of_the_user_is_left_on_disk(tmp_path):
    lineage, _ = _history(tmp_path, "full")
    old = {r.version for r in lineage.history()}
    forget(lineage, 7, metric())
    for record in lineage.history():
        assert not lineage.statistics(record.version).has(7)
        assert record.version not in old
    assert not old & {p.name for p in tmp_path.iterdir()}
    assert len(list(tmp_path.iterdir())) == 5


def test_the_rest_is_the_same_and_can_go_on(tmp_path):
    lineage, _ = _history(tmp_path, "full")
    times = [r.created for r in lineage.history()]
    forget(lineage, 7, metric())
    assert [r.created for r in lineage.history()] == times
    assert [r.kind for r in lineage.history()] == ["fit", "refine", "refine", "refine"]
    assert float(lineage.statistics(lineage.history()[0].version).counts.sum()) == N - int(
        (users(N, PEOPLE) == 7).sum()
    )
    bank = lineage.load()
    z, who = _events(9, "full")
    stats = UserStatistics.collect(z, who, Assigner(metric(), bank.prototypes)(z).prototypes, len(bank))
    lineage.save(refine(bank, metric(), stats, CONFIG).bank, stats)


def test_versions_without_a_trace_stay_as_they_are(tmp_path):
    lineage, _ = _history(tmp_path, "full", windows=1)
    bank = lineage.load()
    z = codes(20, groups=K)
    where = Assigner(metric(), bank.prototypes)(z).prototypes
    stats = UserStatistics.collect(z, torch.full((20,), 500), where, len(bank))
    last = refine(bank, metric(), stats, dataclasses.replace(CONFIG, min_users=1))
    lineage.save(last.bank, stats)
    before = [r.version for r in lineage.history()]
    assert forget(lineage, 999, metric()).replaced == {}
    assert [r.version for r in lineage.history()] == before
    assert forget(lineage, 500, metric()).dropped == (before[-1],)
    assert [r.version for r in lineage.history()] == before[:-1]
    assert lineage.head == before[-2]


def test_trained_versions_and_what_came_after_are_dropped(tmp_path):
    lineage, _ = _history(tmp_path, "full", windows=1)
    wins = iter(range(100))
    trained = specialise(lineage.load(), lambda j, p: p * 1.05, lambda j, p, e: float(next(wins)))
    lineage.save(trained.bank)
    z, who = _events(5, "full")
    where = Assigner(metric(), trained.bank.prototypes)(z).prototypes
    stats = UserStatistics.collect(z, who, where, K)
    lineage.save(refine(trained.bank, metric(), stats, CONFIG).bank, stats)
    versions = [r.version for r in lineage.history()]
    assert forget(lineage, 999, metric()).dropped == ()
    done = forget(lineage, 7, metric())
    assert done.dropped == tuple(versions[2:])
    assert done.head == done.replaced[versions[1]] == lineage.head
    assert len(lineage.history()) == 2


def test_a_prototype_of_one_user_goes_with_them(tmp_path):
    z, who = codes(60, groups=3), torch.arange(60) % 3
    part = fit_bank(editor(), z, 3, users=who)
    lineage = Lineage(tmp_path, HOST)
    lineage.save(part.bank, part.statistics)
    stats = UserStatistics.collect(z, torch.arange(60), part.labels, 3)
    child = refine(part.bank, metric(), stats, CONFIG)
    lineage.save(child.bank, stats)
    done = forget(lineage, 1, metric())
    (left,) = _all(lineage)
    assert len(left) == 2
    gone = int(part.labels[1])
    rest = [j for j in range(3) if j != gone]
    torch.testing.assert_close(left.prototypes.flat(), part.bank.prototypes.flat()[rest], rtol=1e-5, atol=1e-6)
    assert done.dropped == (child.bank.version,)
    assert lineage.statistics().k == 2


def test_a_window_that_would_have_split_otherwise_drops_what_came_after(tmp_path):
    """A split that needs the user for its cohort: without them the version has one prototype, and its child is dropped."""
    z = codes(160, groups=1, spread=0.05)
    z[:40] = codes(40, groups=1, spread=0.05, place=1)
    who = torch.cat([torch.arange(10).repeat(4), 10 + torch.arange(30).repeat(4)])
    config = RefineConfig(min_users=10, split_saving=0.05, trim=0.0)
    part = fit_bank(editor(), z, 1, users=who)
    lineage, m = Lineage(tmp_path, HOST), metric()
    lineage.save(part.bank, part.statistics)
    bank = part.bank
    for _ in range(2):
        stats = UserStatistics.collect(z, who, Assigner(m, bank.prototypes)(z).prototypes, len(bank))
        bank = refine(bank, m, stats, config).bank
        lineage.save(bank, stats)
    versions = [r.version for r in lineage.history()]
    assert len(lineage.load()) == 2
    done = forget(lineage, 3, m)
    assert done.dropped == (versions[2],)
    assert len(lineage.load()) == 1
    assert lineage.head == done.replaced[versions[1]]


def test_a_restored_head_stays_where_it_was(tmp_path):
    lineage, _ = _history(tmp_path, "full")
    versions = [r.version for r in lineage.history()]
    lineage.restore(versions[1])
    done = forget(lineage, 7, metric())
    assert lineage.head == done.head == done.replaced[versions[1]]
    assert len(lineage.history()) == 4


def test_what_is_refused(tmp_path):
    part = fit_bank(editor(), codes(60), 2)
    lineage = Lineage(tmp_path / "a", HOST)
    lineage.save(part.bank)
    with pytest.raises(ConfigError, match="stored without statistics"):
        forget(lineage, 1, metric())
    assert same_prototypes(lineage.load(), part.bank)
    alone = fit_bank(editor(), codes(60), 2, users=torch.full((60,), 5))
    lineage = Lineage(tmp_path / "b", HOST)
    lineage.save(alone.bank, alone.statistics)
    with pytest.raises(ConfigError, match="no version is left"):
        forget(lineage, 5, metric())
    assert lineage.load().version == alone.bank.version
    with pytest.raises(MismatchError, match="editor"):
        forget(lineage, 5, metric("low_rank"))


def test_killed_anywhere_it_leaves_a_lineage_that_can_be_read_and_forgotten_from_again(tmp_path):
    saved, root = tmp_path / "saved", tmp_path / "lineage"
    _history(saved, "full", windows=1)

    def prepare():
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(saved, root)

    whole = Lineage(tmp_path / "whole", HOST)
    shutil.copytree(saved, whole.root)
    forget(whole, 7, metric())
    lineage, points = Lineage(root, HOST), 0
    for point in kill_points(prepare, lambda: forget(Lineage(root, HOST), 7, metric()), RENAMES):
        for record in lineage.history():
            lineage.load(record.version)
            lineage.statistics(record.version)
        assert lineage.load().version == lineage.head
        if point % 4 == 0:
            forget(lineage, 7, metric())
            assert lineage.head == whole.head
            assert sorted(p.name for p in root.iterdir()) == sorted(p.name for p in whole.root.iterdir())
        points = point
    assert points > 12
