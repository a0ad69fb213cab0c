import io

import numpy as np
import polars as pl
import pytest
from PIL import Image

from persona.errors import ConfigError, DataError
from vision.data import catalogue
from vision.data.sources import decode, read_images


def picture(value: int, size: tuple[int, int] = (16, 16), mode: str = "L") -> Image.Image:
    return Image.new(
        mode, size, value if mode in ("L", "I;16", "1") else (value,) * len(Image.new(mode, (1, 1)).getbands())
    )


def png(value: int, **options) -> bytes:
    buffer = io.BytesIO()
    picture(value, **options).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "photos"
    values = {"ann/cat/2.png": 20, "ann/dog/10.png": 100, "ann/cat/1.png": 10, "bob/dog/1.png": 1, "bob/cat/2.png": 2}
    for name, value in values.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture(value).save(root / name)
    return root


def values(data) -> list[int]:
    return data.pixels[:, 0, 0, 0].tolist()


def test_a_folder_is_read_in_the_order_of_its_names(folder):
    data, report = read_images(folder)
    assert data.device_ids == ("ann", "bob")
    assert data.class_names == ("cat", "dog")
    assert values(data) == [10, 20, 100, 1, 2]
    assert data.labels.tolist() == [0, 0, 1, 1, 0]
    assert data.image_shape == (1, 16, 16)
    assert report.skipped == ()
    assert "5 images of 2 devices in 2 classes" in report.lines()[2]
    assert data.meta["source"]["order"] == "order of the file names"


def broken_files() -> dict[str, bytes]:
    whole = png(7, size=(64, 64))
    noise = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(noise, "JPEG")
    return {
        "empty.png": b"",
        "text.png": b"this is no picture",
        "cut_header.png": whole[:20],
        "cut_body.png": whole[: len(whole) - 30],
        "flipped.png": whole[:45] + bytes(255 - b for b in whole[45:60]) + whole[60:],
        "cut.jpg": noise.getvalue()[:900],
        "html.jpg": b"<html>404</html>",
        "bomb.png": whole[:16] + (60_000).to_bytes(4, "big") * 2 + whole[24:],
    }


@pytest.mark.parametrize("name", broken_files())
def test_a_broken_image_costs_one_line(folder, name):
    (folder / "ann" / "dog" / name).write_bytes(broken_files()[name])
    data, report = read_images(folder)
    assert values(data) == [10, 20, 100, 1, 2]
    assert len(report.skipped) == 1
    assert report.skipped[0].startswith(str(folder / "ann" / "dog" / name))
    assert any(line.startswith(f"skipped {folder}") for line in report.lines())


def test_an_oversized_image_is_skipped(folder):
    picture(1, size=(8001, 8000), mode="1").save(folder / "ann" / "dog" / "large.png")
    _, report = read_images(folder)
    assert report.skipped == (f"{folder}/ann/dog/large.png: it has 8001 x 8000 pixels, more than 64,000,000",)


def test_other_files_and_depths_are_named(folder):
    (folder / "ann" / "notes.txt").write_text("x")
    (folder / ".hidden").mkdir()
    picture(1).save(folder / ".hidden" / "x.png")
    picture(1).save(folder / "lost.png")
    data, report = read_images(folder)
    assert data.n_images == 5
    assert report.notes == ("1 files are no images by their suffix and were left out",)
    assert report.skipped == (f"{folder}/lost.png: it does not lie two folders deep (device/class)",)


def test_sizes_and_colours_are_made_equal(folder):
    picture(30, size=(8, 24)).save(folder / "ann" / "cat" / "3.png")
    Image.new("RGB", (16, 16), (255, 0, 0)).save(folder / "ann" / "cat" / "4.png")
    data, report = read_images(folder)
    assert data.image_shape == (3, 16, 16)
    assert data.pixels[3, 0, 0].tolist() == [255, 0, 0]
    assert "1 of 7 images have another size and were stretched to 16 x 16" in report.notes[0]
    assert read_images(folder, size=12)[0].image_shape == (3, 12, 12)


@pytest.mark.parametrize(("mode", "stored", "seen"), [("I;16", 25_700, 100), ("1", 1, 255), ("LA", 0, 255)])
def test_unusual_modes(mode, stored, seen):
    buffer = io.BytesIO()
    image = Image.new(mode, (8, 8), (0, 0) if mode == "LA" else stored)
    image.save(buffer, "PNG")
    assert decode.decode(buffer.getvalue(), (8, 8, 1))[0, 0, 0] == seen


def test_a_turned_photograph_is_put_upright():
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255
    exif = Image.Exif()
    exif[274] = 6
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", exif=exif)
    upright = decode.decode(buffer.getvalue(), (16, 8, 1))
    assert upright[:8].min() == 255
    assert upright[8:].max() == 0


def frame(**columns) -> pl.DataFrame:
    base = {"Writer ID": [2, 2, 10], "label": ["b", "a", "a"], "png": [png(v) for v in (1, 2, 3)]}
    return pl.DataFrame(base | columns)


def test_a_parquet_of_encoded_images(tmp_path):
    frame(path=["x", "y", "z"]).write_parquet(tmp_path / "t.parquet")
    data, report = read_images(tmp_path / "t.parquet")
    assert data.device_ids == ("2", "10")
    assert values(data) == [1, 2, 3]
    assert report.columns["device"] == "Writer ID"
    assert report.columns["image"] == "png"


def test_a_parquet_of_records_and_of_paths(tmp_path):
    records = [{"bytes": png(v), "path": None} for v in (1, 2, 3)]
    frame().drop("png").with_columns(image=pl.Series(records)).write_parquet(tmp_path / "r.parquet")
    assert values(read_images(tmp_path / "r.parquet")[0]) == [1, 2, 3]
    for v in (1, 3):
        picture(v).save(tmp_path / f"{v}.png")
    frame().drop("png").with_columns(path=pl.Series(["1.png", "2.png", "3.png"])).write_parquet(tmp_path / "p.parquet")
    data, report = read_images(tmp_path / "p.parquet")
    assert values(data) == [1, 3]
    assert report.skipped[0].startswith(f"{tmp_path}/p.parquet row 2: it is")


def test_streams_follow_an_order_column(tmp_path):
    frame(time=[9, 5, 1]).write_parquet(tmp_path / "t.parquet")
    data, report = read_images(tmp_path / "t.parquet")
    assert values(data) == [2, 1, 3]
    assert report.order == "order of time"


def test_devices_that_the_source_keeps_for_tests(tmp_path):
    frame(split=["train", "train", "test"]).write_parquet(tmp_path / "t.parquet")
    assert read_images(tmp_path / "t.parquet")[0].reserved.tolist() == [False, True]
    frame(split=["train", "test", "test"]).write_parquet(tmp_path / "t.parquet")
    data, report = read_images(tmp_path / "t.parquet")
    assert not data.reserved.any()
    assert "differ within a device" in report.notes[0]


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"png": [b"x", b"y", b"z"]}, {}, "none of the 3 images can be read"),
        ({"label": ["a", "a", "a"]}, {}, "at least two"),
        ({"label": ["a", None, "a"]}, {}, "has no label in row 2"),
        ({"user": [1, 2, 3]}, {}, "could each be the device"),
        ({}, {"device": "nobody"}, "no column 'nobody'"),
        ({"png": [1, 2, 3]}, {}, "holds Int64"),
        ({}, {"size": 4}, "between 8 and"),
    ],
)
def test_a_table_that_cannot_be_understood(tmp_path, change, options, message):
    frame(**change).write_parquet(tmp_path / "t.parquet")
    with pytest.raises((DataError, ConfigError), match=message):
        read_images(tmp_path / "t.parquet", **options)


def archive(path, **arrays):
    pixels = np.arange(4, dtype=np.uint8)[:, None, None].repeat(9, 1).repeat(8, 2)
    base = {"image": pixels, "label": np.array([1, 0, 1, 0]), "writer": np.array([7, 5, 7, 5], np.int16)}
    np.savez(path, **{name: array for name, array in (base | arrays).items() if array is not None})
    return path


def test_an_archive_of_arrays(tmp_path):
    path = archive(tmp_path / "w.npz", hsf=np.array([4, 0, 4, 0], np.uint8), test=np.array([True, False, True, False]))
    data, report = read_images(path)
    assert data.device_ids == ("5", "7")
    assert data.groups == ("0", "4")
    assert data.reserved.tolist() == [False, True]
    assert values(data) == [1, 3, 0, 2]
    assert data.image_shape == (1, 9, 8)
    assert report.columns["group"] == "hsf"


@pytest.mark.parametrize(
    ("pixels", "shape", "first"),
    [
        (np.full((4, 3, 8, 9), 0.5), (3, 8, 9), 128),
        (np.full((4, 8, 9, 3), 7.0), (3, 8, 9), 7),
        (np.ones((4, 8, 9, 1), np.int64) * 200, (1, 8, 9), 200),
    ],
)
def test_layouts_of_pixels(tmp_path, pixels, shape, first):
    data, _ = read_images(archive(tmp_path / "w.npz", image=pixels))
    assert data.image_shape == shape
    assert data.pixels[0, 0, 0, 0] == first


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image": np.zeros((4, 64))}, r"shape \(4, 64\)"),
        ({"image": np.full((4, 8, 8), -1.0)}, "from -1 to -1"),
        ({"image": np.full((4, 8, 8), np.nan)}, "no pixels"),
        ({"label": np.zeros(3, int)}, "one label an image"),
        ({"writer": None}, "no column looks like the device"),
        ({"extra": np.array([{}, 1], dtype=object)}, "numbers and text only"),
    ],
)
def test_an_archive_that_cannot_be_understood(tmp_path, arrays, message):
    with pytest.raises(DataError, match=message):
        read_images(archive(tmp_path / "w.npz", **arrays))


@pytest.mark.parametrize("name", ["missing.npz", "broken.npz", "broken.parquet", "table.csv", "empty", "flat"])
def test_sources_that_are_not_there(tmp_path, name):
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 broken")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 broken")
    (tmp_path / "table.csv").write_text("a,b\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "flat").mkdir()
    picture(1).save(tmp_path / "flat" / "x.png")
    with pytest.raises(DataError, match=name):
        read_images(tmp_path / name)


def test_the_digits_of_the_catalogue():
    data, _ = catalogue.resolve("digits")
    assert (data.n_images, data.n_classes, data.image_shape) == (1797, 10, (1, 32, 32))
    assert data.pixels.max() > 240
    with pytest.raises(ConfigError, match="did you mean 'digits'"):
        catalogue.load("digit")
    with pytest.raises(DataError, match="neither a path nor a data set"):
        catalogue.resolve("nothing")
