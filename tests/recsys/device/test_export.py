"""Exported recommenders answer as the bundle does, at every level and on every host, without torch."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from persona.device import Device, DeviceBundle
from persona.errors import ConfigError, DataError, FormatError, MismatchError
from persona.prototypes import Server, fit_bank
from recsys.data.batches import Context
from recsys.device.export import edit_points, export_recommender, fit_request_policy, summaries
from recsys.device.recommender import Catalogue, DeviceRecommender
from recsys.serving.release import Release
from tests.recsys.toy import ITEMS, personalised, walks

LENGTH = 5
HISTORIES = [[3], [7, 1, 30, 2, 2], list(range(1, 9)), []]
ROOT = Path(__file__).parents[3]


def _ids(history):
    return [f"i{n}" for n in history]


@torch.no_grad()
def recommender(kind):
    model = personalised(kind, learned=True)
    generator = torch.Generator().manual_seed(0)
    items = torch.randint(1, ITEMS + 1, (200, LENGTH), generator=generator)
    context = Context(items, torch.arange(200) % LENGTH + 1)
    model.editor.host = model.host.digest()
    codes = model.editor.codes(model.host.context_features(context), context.lengths)
    bank = fit_bank(model.editor, codes, 4, seed=0).bank
    titles = [f"Title {n}" for n in range(1, ITEMS + 1)]
    return Release(model, _ids(range(1, ITEMS + 1)), titles, bank=bank)


@pytest.fixture(scope="module", params=["gru4rec", "sasrec", "din"])
def pair(request, tmp_path_factory):
    """A recommender and the folder it was exported to."""
    made = recommender(request.param)
    folder = tmp_path_factory.mktemp("device") / request.param
    export_recommender(made, folder)
    return made, folder


@torch.no_grad()
def _torch_scores(made, history, edit):
    context = made.context([history])
    return made.model.host.score_catalogue(made.model.host.encode(context), edit)[0, 1:].numpy()


@torch.no_grad()
def _codes(made, history):
    context = made.context([history])
    return made.model.editor.codes(made.model.host.context_features(context), context.lengths)


@pytest.mark.parametrize("history", HISTORIES, ids=len)
def test_the_host_is_the_host(pair, history):
    made, folder = pair
    device = DeviceRecommender.load(folder)
    scores = device.device.run(device._inputs(history)).arrays["scores"][0, 1:]
    assert np.abs(scores - _torch_scores(made, history, None)).max() <= 1e-5


@pytest.mark.parametrize("level", ["prototype", "basis", "full"])
def test_every_level_is_that_of_the_bundle(pair, level):
    made, folder = pair
    device = DeviceRecommender.load(folder)
    server = Server(made.model.editor, made.bank)
    for history in HISTORIES[:-1]:
        codes = _codes(made, history)
        device.receive(server.messages(codes, level)[0], level, _ids(history))
        scores = device.device.run(device._inputs(history)).arrays["scores"][0, 1:]
        wanted = _torch_scores(made, history, server.edit(codes, level))
        assert np.abs(scores - wanted).max() <= 1e-5 * max(1.0, np.abs(wanted).max())


def test_answers_are_those_of_the_bundle(pair):
    made, folder = pair
    device, bundle = DeviceRecommender.load(folder), made.recommender()
    for history in HISTORIES[:-1]:  # without a history all scores tie
        for options in ({}, {"seen": True}, {"exclude": ["i1", "i2"]}, {"k": 3 * ITEMS}):
            own = device.recommend([*_ids(history), "stranger"], **options)
            wanted = bundle.recommend(_ids(history), level="host", **options)
            assert [i.item_id for i in own.items] == [i.item_id for i in wanted.items]
            assert [i.title for i in own.items] == [i.title for i in wanted.items]
            assert own.unknown == ["stranger"]
            assert own.level == "host"


def test_summaries_on_the_device_are_those_of_the_policy(pair):
    made, folder = pair
    device = DeviceRecommender.load(folder)
    for history in HISTORIES[:-1]:
        wanted = summaries(made.model.host, made.context([history]))[0]
        assert np.allclose(device._summary(history), wanted, atol=1e-5)


def test_a_history_without_known_items_is_answered_by_the_host(pair):
    made, folder = pair
    device = DeviceRecommender.load(folder)
    device.receive(Server(made.model.editor, made.bank).messages(_codes(made, [3]), "full")[0], "full", ["i3"])
    assert device.recommend(["i3"]).level == "full"
    assert device.recommend(["stranger"]).level == "host"
    assert device.recommend([]).level == "host"


def test_wrong_questions_are_refused(pair):
    device = DeviceRecommender.load(pair[1])
    with pytest.raises(ConfigError, match="at least one item"):
        device.recommend(["i3"], k=0)
    with pytest.raises(DataError, match="not the text"):
        device.recommend("i3")
    with pytest.raises(ConfigError, match="--policy-data"):
        device.wants_edit(["i3"])


def test_vocabularies_that_do_not_fit_are_refused(pair, tmp_path):
    import hashlib

    folder = shutil.copytree(pair[1], tmp_path / "bundle")
    header = json.loads((folder / "device.json").read_text())

    def items(content):
        (folder / "items.json").write_bytes(content)
        header["files"]["items.json"] = hashlib.sha256(content).hexdigest()
        (folder / "device.json").write_text(json.dumps(header))
        return Device(DeviceBundle.load(folder))

    with pytest.raises(FormatError, match="lacks its list of items"):
        DeviceRecommender(items(b"{}"))
    with pytest.raises(FormatError, match="other items than its graph"):
        DeviceRecommender(items(b'{"ids": ["a"], "titles": null}'))
    header["task"] = "classification"
    with pytest.raises(MismatchError, match="not for recommendation"):
        Catalogue.of(items(b"{}").bundle)


def test_a_calibrated_policy_travels_and_decides(tmp_path):
    made, data = recommender("gru4rec"), walks(users=40, events=20)
    policy = fit_request_policy(made, data, 0.6)
    points, read = edit_points(made.model, made.context([[1], [2]])), summaries(made.model.host, made.context([[1]]))
    assert points.shape == (2, 2 * 8)
    assert policy.projection.shape[0] == read.shape[1] == 3 * 8 + 1
    export_recommender(made, tmp_path / "bundle", policy=policy)
    device = DeviceRecommender.load(tmp_path / "bundle")
    message = Server(made.model.editor, made.bank).messages(_codes(made, [1, 2, 3]), "basis")[0]
    assert device.wants_edit(["i1", "i2", "i3"])
    assert not device.wants_edit(["stranger"])
    device.receive(message, "basis", ["i1", "i2", "i3"])
    assert not device.wants_edit(["i1", "i2", "i3"])
    asked = sum(device.wants_edit(_ids([n])) for n in range(1, ITEMS + 1))
    assert asked > 0


def test_without_an_editor_full_edits_alone_are_possible(tmp_path):
    model = personalised("gru4rec", editor=False)
    export_recommender(Release(model, _ids(range(1, ITEMS + 1))), tmp_path / "bundle")
    device = DeviceRecommender.load(tmp_path / "bundle")
    assert device.device.bank is None
    assert device.recommend(["i3"]).level == "host"


ALONE = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "torchrec", "torchvision", "mlflow", "polars", "pandas", "scipy"}:
            raise ImportError(f"{name} is not on a device")
sys.meta_path.insert(0, Blocked())
import vision.device.classifier
from recsys.device.recommender import DeviceRecommender
device = DeviceRecommender.load(sys.argv[1], sys.argv[2])
device.receive(bytes.fromhex(sys.argv[3]), "basis", ["i3"])
again = DeviceRecommender.load(sys.argv[1], sys.argv[2])
print(again.recommend(["i3", "i4"], 3).level, *(item.item_id for item in again.recommend(["i3", "i4"], 3).items))
"""


def test_a_device_needs_neither_torch_nor_mlflow_nor_polars(pair, tmp_path):
    made, folder = pair
    server = Server(made.model.editor, made.bank)
    message = server.messages(_codes(made, [3]), "basis")[0]
    arguments = [sys.executable, "-c", ALONE, str(folder), str(tmp_path / "state"), message.hex()]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    level, *items = done.stdout.split()
    assert level == "basis"
    scores = _torch_scores(made, [3, 4], server.edit(_codes(made, [3]), "basis"))
    scores[[2, 3]] = -np.inf
    assert items == [f"i{n + 1}" for n in np.argsort(-scores)[:3]]


def test_a_device_offers_what_users_have_had_as_the_bundle_says(tmp_path):
    made = recommender("gru4rec")
    made.info["seen"] = True
    export_recommender(made, tmp_path / "again")
    device = DeviceRecommender.load(tmp_path / "again")
    history = _ids([3, 7, 9])
    assert set(history) <= {item.item_id for item in device.recommend(history, ITEMS).items}
    assert not set(history) & {item.item_id for item in device.recommend(history, ITEMS, seen=False).items}
