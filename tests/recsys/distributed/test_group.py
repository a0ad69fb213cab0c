from datetime import timedelta

import pytest

from persona.errors import ConfigError, MismatchError
from persona.storage import digest_json
from persona.training.ranks import Ranks
from pipelines.steps import processes
from recsys.distributed import group
from recsys.methods import Problem
from recsys.methods import problem as base
from tests.recsys.distributed.common import free_port, leave_group
from tests.recsys.toy import SMALL, walks


@pytest.fixture
def started(monkeypatch):
    """As if torchrun had started this process as one of two."""

    def start(rank):
        values = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))

    yield start
    leave_group()


def test_a_process_that_was_started_alone_is_alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with group.joined() as ranks:
        assert ranks == Ranks(0, 1)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_group_that_cannot_form_is_named(started, rank):
    started(rank)
    with (
        pytest.raises(
            ConfigError, match=rf"process {rank} of 2 found no process group at 127\.0\.0\.1:\d+ \(.+start every"
        ),
        group.joined(timedelta(seconds=1)),
    ):
        pass


def test_more_processes_than_rows_of_a_batch(monkeypatch):
    monkeypatch.setattr(base, "current", lambda: Ranks(0, 40))
    with pytest.raises(ConfigError, match=r"a batch of 32 rows cannot be shared by 40 processes: .* at least 40"):
        Problem(walks(), SMALL)


def test_commands_of_one_process_say_so(started):
    started(0)
    with pytest.raises(ConfigError, match="only `recsys pretrain` and `recsys edit` run on several processes"):
        processes.refuse()
    started(1)
    with pytest.raises(SystemExit) as ended:
        processes.refuse()
    assert ended.value.code == ConfigError.exit_code


def test_only_rank_0_tells_what_all_meet(monkeypatch):
    def meet(ranks):
        monkeypatch.setattr(group, "current", lambda: ranks)
        with processes.joined():
            raise ConfigError("the same everywhere")

    with pytest.raises(ConfigError, match="the same everywhere"):
        meet(Ranks(0, 2))
    with pytest.raises(SystemExit) as ended:
        meet(Ranks(1, 2))
    assert ended.value.code == ConfigError.exit_code


def test_a_checkpoint_of_other_data_is_refused(tmp_path):
    Problem(walks(), SMALL, folder=tmp_path).base_host()
    other = walks(seed=1)
    owner = {"data": other.digest, **SMALL.host_settings()}
    (made,) = tmp_path.iterdir()
    made.rename(tmp_path / f"gru4rec-seed0-{digest_json(owner)[:8]}")
    with pytest.raises(MismatchError, match=rf"checkpoint of other settings or data \(data {walks().digest} there"):
        Problem(other, SMALL, folder=tmp_path).base_host()
