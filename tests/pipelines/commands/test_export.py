"""`persona export`, and what it says where it cannot."""

import json

import pytest

from persona.device import DeviceBundle
from pipelines import cli
from recsys.device.recommender import DeviceRecommender
from recsys.serving.release import Release
from tests.recsys.device.test_export import recommender
from tests.recsys.toy import personalised, walks


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A workspace with prepared events and a bundle."""
    root = tmp_path_factory.mktemp("work")
    recommender("gru4rec").save(root / "bundle")
    walks(users=20, events=12).save(root / "prepared")
    return root


def test_a_bundle_becomes_a_folder_for_devices(work, tmp_path, capsys):
    out = tmp_path / "device"
    options = ["--policy-data", str(work), "--request-rate", "0.3", "--json"]
    assert cli.main(["export", "--model", str(work / "bundle"), "--out", str(out), *options]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["format"] == "onnx"
    assert told["bytes"] == sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    assert {"graph.onnx", "device.json", "items.json", "policy.safetensors", "bank/bank.json"} <= told["files"].keys()
    bundle = DeviceBundle.load(out)
    assert bundle.policy.rate == 0.3
    assert bundle.bank.version == Release.load(work / "bundle").bank.version
    device = DeviceRecommender.load(out)
    assert device.wants_edit(["i1"])
    assert device.recommend(["i1"], 1).items[0].title.startswith("Title")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--format", "onx"], "did you mean 'onnx'"),
        (["--policy-data", "nowhere"], "persona recsys prepare"),
    ],
)
def test_what_cannot_be_exported_says_why(work, tmp_path, capsys, options, sentence):
    out = tmp_path / "device"
    assert cli.main(["export", "--model", str(work / "bundle"), "--out", str(out), *options]) == 2
    assert sentence in capsys.readouterr().err
    assert not out.exists()


def test_a_folder_without_a_bundle_and_a_host_without_an_editor(work, tmp_path, capsys):
    assert cli.main(["export", "--model", str(tmp_path), "--out", str(tmp_path / "device")]) == 2
    assert "holds no bundle" in capsys.readouterr().err
    Release(personalised("gru4rec", editor=False), [str(i) for i in range(1, 31)]).save(tmp_path / "host")
    options = ["--out", str(tmp_path / "device"), "--policy-data", str(work)]
    assert cli.main(["export", "--model", str(tmp_path / "host"), *options]) == 2
    assert "no edits to ask for" in capsys.readouterr().err
