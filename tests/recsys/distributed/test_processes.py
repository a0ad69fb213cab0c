"""One process and several do the same: losses, metrics, and what is read back from the checkpoints of the others."""

import json
import shutil

import pytest
import torch

from recsys import evaluation
from recsys.distributed import checkpoints
from recsys.hosts import make_host
from recsys.methods import Problem
from tests.recsys.distributed import common, worker
from tests.recsys.toy import walks

pytestmark = pytest.mark.slow

SHARDED = [case for case, config in worker.CASES.items() if config.table_optimizer != "adam" and config.mode != "joint"]


def host_checkpoints(place, case, trainings):
    """The folder of checkpoints of the host that was trained last."""
    *_, host, _ = trainings
    (folder,) = (place / "together" / case).rglob(f"{host}/checkpoints")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def alone(place):
    """Answers of this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "ROWS", worker.ROWS)
        patch.setattr(evaluation, "FULL_ROWS", worker.ROWS)
        yield {case: worker.answers(case, place / "alone" / case) for case in worker.CASES}
    common.leave_group()


@pytest.fixture(scope="module")
def together(place):
    """Answers of two processes."""
    common.on_processes(2, place / "together", place / "together.json")
    return json.loads((place / "together.json").read_text())


@pytest.mark.parametrize("case", worker.CASES)
def test_losses_and_metrics_are_those_of_one_process(case, alone, together):
    assert alone[case]["mode"] == together[case]["mode"]
    assert list(alone[case]["trainings"]) == list(together[case]["trainings"])
    # A host that starts from what another training made starts with its rounding.
    for before, (name, training) in enumerate(alone[case]["trainings"].items()):
        assert training
        for one, two in zip(training, together[case]["trainings"][name], strict=True):
            assert two["loss"] == pytest.approx(one["loss"], rel=1e-6 * (1 + before))
    assert together[case]["tested"] == pytest.approx(alone[case]["tested"], rel=1e-3)


@pytest.mark.parametrize("case", worker.CASES)
def test_one_process_reads_what_two_have_written(case, alone, together, place):
    """Every training is done: it is read from its checkpoints, on one process; even metrics have the same bits."""
    assert worker.answers(case, place / "together" / case) == together[case]


def test_two_processes_read_what_one_has_written(alone, place):
    shutil.copytree(place / "alone", place / "handed over")
    common.on_processes(2, place / "handed over", place / "handed over.json")
    assert json.loads((place / "handed over.json").read_text()) == alone


@pytest.mark.parametrize("case", SHARDED)
def test_shards_are_read_without_a_process_group(case, together, place):
    common.leave_group()
    folder = host_checkpoints(place, case, together[case]["trainings"])
    config, data = worker.CASES[case], walks()
    host = make_host(config.host_config(data.n_items))
    best = checkpoints.read_header(folder, checkpoints.newest(folder))["best"]
    tensors = checkpoints.load(folder, best, {}, lambda name: name.startswith("module/"))
    host.load_state_dict({name.removeprefix("module/host."): tensor for name, tensor in tensors.items()})
    assert host.digest() == together[case]["digest"]
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("case", SHARDED)
def test_the_newest_checkpoint_and_the_best_one_are_kept(case, together, place):
    folder = host_checkpoints(place, case, together[case]["trainings"])
    header = checkpoints.read_header(folder, checkpoints.newest(folder))
    assert {path.name for path in folder.iterdir()} == {checkpoints.name_of(2, 0), header["best"]}
    assert not [path for path in folder.rglob("*") if path.suffix in (".pkl", ".pt", ".metadata")]
    assert header["best"] == checkpoints.name_of(header["best_epoch"] + 1, 0)


def test_a_table_in_one_piece_becomes_an_ordinary_one(alone, place):
    problem = Problem(walks(), worker.CASES["din"], folder=place / "alone" / "din")
    host = problem.early_host()
    assert host.digest() == alone["din"]["digest"]
    assert host.embedding.embeddings["item"].weight.shape == (31, 8)
    assert torch.equal(host.embedding.embeddings["item"].weight[0], torch.zeros(8))
