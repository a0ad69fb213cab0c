"""Several workers refine one bank: each collects its share of the new events, one command merges what they wrote."""

import json
import shutil
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

import polars as pl
import pytest
import torch

from persona.errors import ConfigError, DataError
from persona.prototypes import HeadMetric, fit_bank, load_statistics
from pipelines.cli import main
from pipelines.steps.collecting import Shard, collect, of_files
from pipelines.steps.workspace import Workspace
from recsys.data.batches import Context
from recsys.data.columns import ITEM, TIME, USER
from recsys.data.log import read_log
from recsys.data.sequences import build_sequences
from recsys.prototypes import user_numbers
from recsys.serving.release import Release
from tests.recsys.toy import personalised, walks

OLD, NEW = 8, 12


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A workspace with a prepared log, a bundle with prototypes and their lineage; new.csv has the events after the log."""
    root = tmp_path_factory.mktemp("collecting")
    whole = walks(users=40, events=NEW)
    owner = whole.user_of(range(whole.n_events))
    frame = pl.DataFrame(
        {
            USER: whole.user_ids.gather(owner),
            ITEM: whole.item_ids.gather(whole.items - 1),
            TIME: 1_700_000_000 + whole.times,
            "place": [i % NEW for i in range(whole.n_events)],
        }
    )
    frame.filter(pl.col("place") < OLD).drop("place").write_csv(root / "old.csv")
    frame.filter(pl.col("place") >= OLD).drop("place").write_csv(root / "new.csv")
    work = Workspace(root / "work")
    model = personalised(learned=True)
    ids = whole.item_ids.to_list()
    plain = Release(model, ids)
    codes = model.codes(Context.from_lists([whole.history_of(name).tolist() for name in whole.user_ids], 5))
    bank = fit_bank(model.editor, codes, 3, users=user_numbers(whole.user_ids.to_list())).bank
    work.lineage(plain.host_digest).save(bank)
    Release(model, ids, bank=bank).save(work.bundle)
    build_sequences(read_log(root / "old.csv")).save(work.prepared)
    return root


@pytest.fixture
def place(template, workplace):
    """A copy with an empty registry, in the working directory."""
    shutil.copytree(template, workplace, dirs_exist_ok=True)
    return workplace


def persona(*arguments):
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as errors:
        code = main(["recsys", *arguments, "--json"])
    return code, json.loads(out.getvalue()) if code == 0 else errors.getvalue()


def test_shares_cover_all_users_once(template, tmp_path):
    work = Workspace(template / "work")
    source = str(template / "new.csv")
    whole = collect(work, tmp_path / "whole.safetensors", source=source)
    assert (whole.users, whole.contexts, whole.window["events"]) == (40, 160, 160)
    parts = [collect(work, tmp_path / f"p/{i}.safetensors", shard=Shard(i, 3), source=source) for i in (1, 2, 3)]
    assert sum(part.users for part in parts) == 40
    assert sum(part.window["events"] for part in parts) == 160
    bank = work.lineage(Release.load(work.bundle).host_digest).load()
    merged, alone = of_files([tmp_path / "p"], bank), load_statistics(tmp_path / "whole.safetensors").statistics
    assert torch.equal(merged.statistics.users, alone.users)
    torch.testing.assert_close(merged.statistics.sums, alone.sums)
    assert merged.window["events"] == 160
    assert merged.window["users"] == 40
    assert merged.window["from"] == whole.window["from"]


def test_what_is_refused(template, tmp_path):
    work = Workspace(template / "work")
    for text in ("3", "0/2", "3/2", "a/b"):
        with pytest.raises(ConfigError, match="write 3/16"):
            Shard.parse(text)
    with pytest.raises(ConfigError, match="which events are new"):
        collect(work, tmp_path / "a.safetensors")
    bank = work.lineage(Release.load(work.bundle).host_digest).load()
    with pytest.raises(DataError, match="no file of statistics"):
        of_files([tmp_path], bank)
    with pytest.raises(DataError, match="fewer shares"):
        collect(work, tmp_path / "a.safetensors", shard=Shard(17, 100_000), source=str(template / "new.csv"))


@pytest.mark.slow
def test_merged_statistics_refine_as_the_events_do(place):
    for i in (1, 2):
        code, made = persona("collect", "--events", "new.csv", "--shard", f"{i}/2", "--out", f"stats/{i}.safetensors")
        assert code == 0, made
    code, merged = persona("refine", "--statistics", "stats", "--min-users", "2")
    assert code == 0, merged
    assert merged["served"]
    assert not merged["report"]["compared"]
    assert merged["report"]["window"] == {**merged["report"]["window"], "events": 160, "users": 40, "shards": 2}
    lineage = Workspace(place / "work").lineage(Release.load(place / "work" / "bundle").host_digest)
    assert lineage.head == merged["version"]

    # The head has moved on: what was collected for its parent must not refine it.
    code, refused = persona("refine", "--statistics", "stats")
    assert code == 2
    assert "was collected with the bank version" in refused

    lineage.restore(merged["parent"])
    code, alone = persona("refine", "--events", "new.csv", "--min-users", "2")
    assert code == 0, alone
    assert alone["report"]["compared"]
    a, b = (lineage.load(v["version"]) for v in (merged, alone))
    torch.testing.assert_close(a.prototypes.flat(), b.prototypes.flat(), rtol=0, atol=1e-6)
    a.check(HeadMetric(Release.load(place / "work" / "bundle").model.editor))
    lineage.restore(merged["parent"])
    code, compared = persona("refine", "--statistics", "stats", "--events", "new.csv", "--min-users", "2")
    assert code == 0, compared
    assert compared["report"]["compared"]
