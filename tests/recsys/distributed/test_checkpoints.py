import json
import shutil
from dataclasses import replace

import pytest

from persona.errors import ConfigError, FormatError, MismatchError
from persona.training.loop import fit
from recsys.distributed import checkpoints
from recsys.distributed.execution import ShardedExecution
from recsys.methods import Problem
from recsys.personalised import Personalised
from tests.recsys.distributed.common import leave_group
from tests.recsys.toy import SMALL, walks

CONFIG = replace(
    SMALL, host="sasrec", dropout=0.2, table_optimizer="rowwise_adagrad", table_learning_rate=0.1, checkpoint_steps=3
)


@pytest.fixture(autouse=True)
def alone():
    yield
    leave_group()


class KilledError(Exception):
    pass


def train(folder, *, steps=None, config=CONFIG):
    """The digest of a trained host and its history, and in how many steps; a run that is killed after ``steps`` of them."""
    problem = Problem(walks(), config)
    model = Personalised(problem.new_host())
    objective, judged = problem.objective(model, problem.split.train), []
    judge = objective.judge

    def counting(logits):
        if steps is not None and len(judged) == steps:
            raise KilledError
        judged.append(len(logits))
        return judge(logits)

    objective.judge = counting
    result = fit(
        model,
        model.parameters(),
        objective,
        config.fit_config(config.learning_rate),
        folder=folder,
        about={"data": "toy"},
        execution=lambda *a: ShardedExecution(*a, learning_rate=config.table_learning_rate),
    )
    return model.host.digest(), result, len(judged)


@pytest.fixture(scope="module")
def undisturbed():
    return train(None)


@pytest.mark.parametrize(("killed", "kept"), [(1, 0), (3, 3), (5, 3), (16, 15), (20, 20), (34, 32)])
def test_a_killed_run_ends_with_the_same_bits_and_repeats_no_more_than_it_must(tmp_path, undisturbed, killed, kept):
    digest, result, steps = undisturbed
    assert steps == 34, "of two epochs"
    if killed < steps:
        with pytest.raises(KilledError):
            train(tmp_path, steps=killed)
    else:
        train(tmp_path, config=replace(CONFIG, epochs=1))
        kept = steps // 2
    again = train(tmp_path)
    assert again[:2] == (digest, result)
    assert again[2] == steps - kept


def test_a_checkpoint_that_is_half_written_is_ignored_and_removed(tmp_path, undisturbed):
    with pytest.raises(KilledError):
        train(tmp_path, steps=5)
    folder = tmp_path / "checkpoints"
    (name,) = (path.name for path in folder.iterdir())
    shutil.copytree(folder / name, folder / ".00000-0000006")
    (folder / ".00000-0000006" / checkpoints.HEADER).unlink()
    assert checkpoints.newest(folder) == name == checkpoints.name_of(0, 3)
    assert train(tmp_path)[:2] == undisturbed[:2]
    assert not list(folder.glob(".*"))


def test_checkpoints_of_other_settings_are_refused(tmp_path):
    train(tmp_path, config=replace(CONFIG, epochs=1))
    with pytest.raises(MismatchError, match=r"learning_rate 0\.03 there, 0\.5 now"):
        train(tmp_path, config=replace(CONFIG, learning_rate=0.5))


def test_damage_is_named(tmp_path):
    train(tmp_path, config=replace(CONFIG, epochs=1))
    folder = tmp_path / "checkpoints"
    newest = folder / checkpoints.newest(folder)
    for shard in newest.glob("*.safetensors"):
        shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(FormatError, match=f"{newest.name} cannot be read .* delete it"):
        train(tmp_path)
    (newest / checkpoints.HEADER).write_text(json.dumps({"format": "cookbook"}))
    with pytest.raises(FormatError, match="no checkpoint of a sharded table"):
        train(tmp_path)


def test_a_loss_that_explodes_is_named():
    with pytest.raises(ConfigError, match="lower the learning rate"):
        train(None, config=replace(CONFIG, table_learning_rate=1e38))
