"""Bundles on disk: what is written is read again, and what is damaged or of another bundle is refused."""

import json
import shutil

import polars as pl
import pytest
import torch

from persona.errors import DataError, FormatError, MismatchError
from recsys.serving.release import Release
from tests.recsys.toy import ITEMS, personalised

IDS = [str(100 + i) for i in range(1, ITEMS + 1)]
TITLES = [None if i == 1 else f"Film {i}" for i in range(1, ITEMS + 1)]
INFO = {"settings": {"seed": 0}, "metrics": {"time/uauc": 0.5}, "parent": None}


def make(seed: int = 0, **options: object) -> Release:
    model = personalised(**{"learned": True, **options})  # type: ignore[arg-type]
    if seed:
        torch.manual_seed(seed)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return Release(model, IDS, TITLES, INFO)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    make().save(folder)
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A bundle of the same shape with another host, another editor and another vocabulary."""
    folder = tmp_path_factory.mktemp("bundles") / "other"
    unlike = make(seed=1)
    Release(unlike.model, IDS[::-1], TITLES, INFO).save(folder)
    return folder


@pytest.fixture
def bundle(saved, tmp_path):
    """A copy to be damaged."""
    return shutil.copytree(saved, tmp_path / "bundle")


@pytest.mark.parametrize("kind", ["din", "gru4rec", "sasrec"])
@pytest.mark.parametrize("editor", [True, False])
def test_a_loaded_bundle_is_the_same_model_bit_for_bit(kind, editor, tmp_path):
    before = make(kind=kind, editor=editor)
    before.save(tmp_path / "bundle")
    after = Release.load(tmp_path / "bundle")
    context = before.context([[1], [5, 30, 5], []])
    with torch.no_grad():
        assert torch.equal(after.model.score_catalogue(context), before.model.score_catalogue(context))
    assert (after.info, after.item_ids, after.titles) == (INFO, IDS, TITLES)
    assert after.host_digest == before.host_digest
    assert (after.model.editor is None) == (not editor)


def test_saving_replaces_a_bundle_as_a_whole(tmp_path):
    make(editor=True).save(tmp_path / "bundle")
    make(editor=False).save(tmp_path / "bundle")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]
    assert not (tmp_path / "bundle" / "editor.safetensors").exists()
    Release.load(tmp_path / "bundle")


def edit_json(bundle, **changes):
    path = bundle / "bundle.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def inner(bundle, part, **changes):
    edit_json(bundle, **{part: {**json.loads((bundle / "bundle.json").read_text())[part], **changes}})


FILES = ("bundle.json", "host.safetensors", "editor.safetensors", "items.parquet")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(bundle, name):
    (bundle / name).unlink()
    kind = DataError if name == "bundle.json" else FormatError
    with pytest.raises(kind, match=f"{bundle}.*{name}"):
        Release.load(bundle)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_a_truncated_file_is_named(bundle, name, share):
    content = (bundle / name).read_bytes()
    (bundle / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(FormatError, match=str(bundle / name)):
        Release.load(bundle)


@pytest.mark.parametrize("name", ["host.safetensors", "editor.safetensors"])
def test_a_flipped_bit_of_the_weights_is_found(bundle, name):
    content = bytearray((bundle / name).read_bytes())
    content[-5] ^= 1
    (bundle / name).write_bytes(content)
    with pytest.raises(FormatError, match=f"{bundle / name} is damaged"):
        Release.load(bundle)


@pytest.mark.parametrize("name", ["host.safetensors", "editor.safetensors", "items.parquet"])
def test_a_file_of_another_bundle_is_refused(bundle, other, name):
    shutil.copy(other / name, bundle / name)
    with pytest.raises((MismatchError, FormatError), match=str(bundle)):
        Release.load(bundle)


def test_an_editor_of_another_host_is_a_mismatch(bundle, other):
    shutil.copy(other / "editor.safetensors", bundle / "editor.safetensors")
    with pytest.raises(MismatchError, match=r"editor\.safetensors belongs to another host"):
        Release.load(bundle)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda b: (b / "bundle.json").write_text("[]"), "format None version None"),
        (lambda b: edit_json(b, format="persona-edit"), "has format 'persona-edit' version 2"),
        (lambda b: edit_json(b, version=99), "version 99, but 'persona-recsys-bundle' version 1 or 2 is needed"),
        (lambda b: edit_json(b, host=None), "bundle.json"),
        (lambda b: edit_json(b, host={"kind": "gru4rec"}), "bundle.json.*'n_items' is missing"),
        (lambda b: inner(b, "host", kind="gru5rec"), "bundle.json.*unknown host 'gru5rec'"),
        (lambda b: inner(b, "host", dim=16), "host.safetensors does not fit the settings"),
        (lambda b: inner(b, "host", dim="wide"), "bundle.json.*dim has to be a whole number"),
        (lambda b: inner(b, "host", n_items=ITEMS + 1), "host.safetensors does not fit the settings"),
        (lambda b: edit_json(b, editor={"width": 8}), "bundle.json"),
        (lambda b: edit_json(b, editor=3), "bundle.json"),
        (lambda b: inner(b, "editor", width=16), "editor.safetensors does not fit the settings"),
        (lambda b: inner(b, "editor", colour=1), "bundle.json.*unknown editor setting 'colour'"),
        (lambda b: pl.DataFrame({"item_id": IDS[:-1]}).write_parquet(b / "items.parquet"), "items.parquet"),
        (lambda b: pl.DataFrame({"id": IDS}).write_parquet(b / "items.parquet"), "items.parquet"),
    ],
)
def test_a_damaged_bundle_is_a_sentence_that_names_the_file(bundle, damage, sentence):
    damage(bundle)
    with pytest.raises(FormatError, match=sentence) as refused:
        Release.load(bundle)
    assert str(bundle) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "key", ["host", "editor", "host_digest", "editor_digest", "bank_version", "items_digest", "info"]
)
def test_a_missing_entry_is_named(bundle, key):
    path = bundle / "bundle.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != key}))
    with pytest.raises(FormatError, match=f"bundle.json lacks '{key}'"):
        Release.load(bundle)


def test_a_folder_without_a_bundle_says_what_makes_one(tmp_path):
    for place in (tmp_path, tmp_path / "missing"):
        with pytest.raises(DataError, match=rf"{place} holds no bundle .*run `persona recsys release` first"):
            Release.load(place)
