from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from persona.errors import DataError, FormatError, MismatchError
from persona.prototypes import (
    RefineConfig,
    StatisticsFold,
    UserStatistics,
    forget_user,
    is_shard,
    load_statistics,
    merge,
    merge_statistics,
    refine,
    save_statistics,
)
from persona.storage import save_tensors
from tests.persona.prototypes.world import codes, metric, partition, users, window

N = 400
LIMITS = RefineConfig(eta=0.7, cap=3.0, trim=0.2, min_users=2, budget=10.0)


def _events(seed=0):
    return codes(N, seed, groups=4, spread=0.5), users(N, 25, seed)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1000), shards=st.integers(1, 16))
def test_refinement_from_files_does_not_depend_on_the_cut(seed, shards, tmp_path):
    """Users lie on several workers, so their caps hold only if counts are added before they are capped."""
    part = partition()
    z, who = _events(seed)
    whole = refine(part.bank, metric(), window(part, z, who), LIMITS)
    cut = torch.randint(shards, (N,), generator=torch.Generator().manual_seed(seed))
    paths = []
    for s in range(shards):
        rows = cut == s
        paths.append(tmp_path / f"{seed}-{shards}-{s}.safetensors")
        save_statistics(paths[-1], window(part, z[rows], who[rows]), part.bank, {"shard": s})
    for order in (paths, paths[::-1]):
        statistics, windows = merge_statistics(order, part.bank)
        assert sorted(w["shard"] for w in windows) == list(range(shards))
        made = refine(part.bank, metric(), statistics, LIMITS)
        difference = made.bank.prototypes.flat() - whole.bank.prototypes.flat()
        assert float(difference.abs().max()) <= 1e-6
        assert made.contexts.tolist() == whole.contexts.tolist()
        assert torch.equal(made.flow, whole.flow)


def test_a_cap_counts_a_users_contexts_on_all_workers():
    """One loud user sends 90 contexts to three workers; capped shard by shard they would weigh three caps."""
    part = partition(k=1)
    quiet, loud = codes(60, 1), codes(90, 2) + 0.5
    z = torch.cat([quiet, loud])
    who = torch.cat([torch.arange(60), torch.full((90,), 99)])
    shards = [window(part, z[i::3], who[i::3]) for i in range(3)]
    limits = RefineConfig(eta=1.0, cap=5.0, trim=0.0, min_users=1, budget=1e6)
    made = refine(part.bank, metric(), merge(shards), limits)
    mean = (quiet.sum(0) + 5.0 * loud.mean(0)) / 65
    torch.testing.assert_close(made.bank.centres[0], mean)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), shards=st.integers(0, 12))
def test_a_fold_is_the_merge_of_all(seed, shards):
    part = partition()
    z, who = _events(seed)
    pieces = [window(part, z[i::12], who[i::12]) for i in range(shards)]
    fold = StatisticsFold(4, z.shape[1:])
    for piece in pieces:
        fold.add(piece)
    made = fold.result()
    assert made.k == 4
    if not pieces:
        assert len(made) == 0
        return
    whole = merge(pieces)
    assert torch.equal(made.users, whole.users)
    torch.testing.assert_close(made.sums, whole.sums, rtol=1e-12, atol=1e-12)


def test_a_file_is_read_back(tmp_path):
    part = partition()
    made = window(part, *_events())
    digest = save_statistics(tmp_path / "a.safetensors", made, part.bank, {"from": "today"})
    stored = load_statistics(tmp_path / "a.safetensors")
    assert (stored.host, stored.editor, stored.bank) == (part.bank.host, part.bank.editor, part.bank.version)
    assert (stored.window, stored.digest) == ({"from": "today"}, digest)
    for name in ("users", "prototypes", "counts", "sums"):
        assert torch.equal(getattr(stored.statistics, name), getattr(made, name))


def test_shards_of_another_version_or_given_twice_are_refused(tmp_path):
    part = partition()
    made = window(part, *_events())
    a, b, c = (tmp_path / f"{name}.safetensors" for name in "abc")
    save_statistics(a, made, part.bank, {})
    save_statistics(b, made, part.bank, {})
    save_statistics(c, made, replace(part.bank, metadata={"kind": "another"}), {})
    with pytest.raises(DataError, match="give each shard once"):
        merge_statistics([a, b], part.bank)
    with pytest.raises(MismatchError, match=r"c\.safetensors was collected with the bank version"):
        merge_statistics([a, c], part.bank)
    with pytest.raises(DataError, match="no statistics"):
        merge_statistics([], part.bank)
    other = replace(part.bank, editor="another editor")
    with pytest.raises(MismatchError, match="editor"):
        merge_statistics([a], other)


def test_damaged_and_foreign_files_are_refused(tmp_path):
    part = partition()
    path = tmp_path / "a.safetensors"
    save_statistics(path, window(part, *_events()), part.bank, {})
    whole = path.read_bytes()
    path.write_bytes(whole[:-3] + bytes(3))
    with pytest.raises(FormatError, match="damaged"):
        load_statistics(path)
    path.write_bytes(whole[:100])
    with pytest.raises(FormatError, match="damaged"):
        load_statistics(path)
    save_tensors(path, {"users": torch.zeros(1)}, {"format": "something"})
    with pytest.raises(FormatError, match="'something'"):
        load_statistics(path)
    with pytest.raises(FormatError, match="cannot be read"):
        load_statistics(tmp_path / "none.safetensors")


def test_empty_shards_do_no_harm(tmp_path):
    part = partition()
    nothing = torch.zeros(0, dtype=torch.int64)
    empty = UserStatistics.collect(torch.zeros(0, 2, 8), nothing, nothing, 4)
    save_statistics(tmp_path / "empty.safetensors", empty, part.bank, {})
    save_statistics(tmp_path / "full.safetensors", window(part, *_events()), part.bank, {})
    merged, _ = merge_statistics([tmp_path / "empty.safetensors", tmp_path / "full.safetensors"], part.bank)
    assert float(merged.counts.sum()) == N


def test_a_user_is_taken_out_of_a_shard(tmp_path):
    part, path = partition(), tmp_path / "a.safetensors"
    z, who = _events()
    save_statistics(path, window(part, z, who), part.bank, {"events": N})
    assert not forget_user(path, 99)
    assert forget_user(path, 7)
    assert not forget_user(path, 7)
    merged, windows = merge_statistics([path], part.bank)
    expected = window(part, z[who != 7], who[who != 7])
    assert torch.equal(merged.users, expected.users)
    torch.testing.assert_close(merged.sums, expected.sums)
    assert windows == [{"events": N}]
    save_statistics(path, window(part, z[who == 3], who[who == 3]), part.bank, {})
    assert forget_user(path, 3)
    assert not path.exists()


def test_a_shard_is_told_from_other_files(tmp_path):
    part = partition()
    save_statistics(tmp_path / "a", window(part, *_events()), part.bank, {})
    save_tensors(tmp_path / "b", {"users": torch.zeros(1)}, {"format": "something"})
    (tmp_path / "c").write_bytes(b"\xff" * 40)
    (tmp_path / "d").touch()
    assert [name for name in "abcd" if is_shard(tmp_path / name)] == ["a"]
