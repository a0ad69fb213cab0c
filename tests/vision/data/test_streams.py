import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from persona.errors import ConfigError, DataError
from tests.vision.common import toy_images
from vision.data.corruptions import CORRUPTIONS, corrupt
from vision.data.streams import ORDERS, StreamConfig, plan, stream_suite

pytest.importorskip("imagecorruptions")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_corruption_is_seeded_and_changes_the_image(name, channels):
    image = np.random.default_rng(0).integers(0, 256, (28, 30, channels), dtype=np.uint8)
    before = np.random.get_state()[1].copy()
    first = corrupt(image, name, 4, [3, 1])
    assert first.shape == image.shape
    assert first.dtype == np.uint8
    assert not np.array_equal(first, image)
    assert np.array_equal(first, corrupt(image, name, 4, [3, 1]))
    assert np.array_equal(np.random.get_state()[1], before)


@pytest.mark.parametrize("name", ["gaussian_noise", "impulse_noise", "contrast", "defocus_blur"])
def test_severity_grows(name):
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    changes = [np.abs(corrupt(image, name, s, 0).astype(int) - image).mean() for s in (1, 3, 5)]
    assert changes == sorted(changes)


def test_unknown_corruptions_are_refused():
    image = np.zeros((32, 32, 1), np.uint8)
    with pytest.raises(ConfigError, match="did you mean 'fog'"):
        corrupt(image, "fogg", 1, 0)
    with pytest.raises(ConfigError, match="between 1 and 5"):
        corrupt(image, "fog", 6, 0)


def test_the_orders():
    fog = CORRUPTIONS.index("fog")

    def severities(order: str, n: int = 12) -> list[int]:
        kind, severity = plan(0, n, StreamConfig(order, ("fog",), severity=3, period=4))
        assert set(kind[severity > 0]) <= {fog}
        assert (kind[severity == 0] == -1).all()
        return severity.tolist()

    assert severities("abrupt") == [0] * 4 + [3] * 8
    assert severities("gradual") == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert severities("recurring") == [0] * 4 + [3] * 4 + [0] * 4
    mixed = severities("mixed", 40)
    assert all(len(set(mixed[i : i + 4])) == 1 for i in range(0, 40, 4))
    assert set(mixed) <= {1, 2, 3}
    assert len(set(mixed)) > 1


@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 9), st.sampled_from(ORDERS), st.integers(0, 40))
def test_a_plan_stays_in_its_bounds(n, severity, period, order, device):
    kind, level = plan(device, n, StreamConfig(order, severity=severity, period=period))
    assert kind.shape == level.shape == (n,)
    assert 0 <= level.min() <= level.max() <= severity
    assert ((level == 0) == (kind == -1)).all()
    if order != "mixed":
        assert set(kind[level > 0]) <= {device % 15}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"order": "sudden"}, "unknown order"),
        ({"corruptions": ()}, "at least one"),
        ({"corruptions": ("rain",)}, "unknown corruption"),
        ({"severity": 0}, "between 1 and 5"),
        ({"period": 0}, "at least 1"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ConfigError, match=message):
        StreamConfig(**settings)


def test_a_suite_keeps_the_images_of_its_parts_apart():
    base = toy_images(devices=2, per_device=24, size=32)
    config = StreamConfig(corruptions=("contrast", "brightness"), severity=3, seed=2)
    suite = stream_suite(base, config, orders=("abrupt", "gradual"), length=6, adapt=0.25, test=0.25)
    groups = np.array(suite.groups)
    clean = suite.positions_of(np.flatnonzero(groups == "clean"))
    originals = {picture.tobytes() for picture in base.pixels}
    assert all(suite.pixels[i].tobytes() in originals for i in clean)
    assert not suite.reserved[groups == "clean"].any()
    for order in ("abrupt", "gradual"):
        for kind in ("contrast", "brightness"):
            names = [name for name in suite.device_ids if name.startswith(f"{order}/{kind}/")]
            assert {name.split("/")[2].rstrip("0123456789") for name in names} == {"adapt", "test"}
    # The first images of a stream are clean: by them, the parts are seen to share none.
    seen = {}
    for part in ("adapt", "test"):
        devices = [i for i, name in enumerate(suite.device_ids) if f"/{part}" in name]
        assert all(bool(suite.reserved[d]) == (part == "test") for d in devices)
        seen[part] = {suite.pixels[suite.offsets[d]].tobytes() for d in devices} & originals
        assert seen[part]
    kept = {suite.pixels[i].tobytes() for i in clean}
    assert not (seen["adapt"] & seen["test"])
    assert not (kept & (seen["adapt"] | seen["test"]))


def test_corruptions_can_be_left_to_test_streams():
    base = toy_images(devices=2, per_device=24, size=32)
    config = StreamConfig(corruptions=("contrast", "brightness", "fog"), severity=3, seed=2)
    suite = stream_suite(base, config, orders=("abrupt",), length=6, unseen=("fog",))
    whole = stream_suite(base, config, orders=("abrupt",), length=6)
    found = {
        (part, name.split("/")[1]) for name in suite.device_ids for part in ("adapt", "test") if f"/{part}" in name
    }
    assert found == {("adapt", "contrast"), ("adapt", "brightness"), ("test", "fog")}
    for name in suite.device_ids:
        own, other = (data.positions_of(np.array([data.device_ids.index(name)])) for data in (suite, whole))
        assert np.array_equal(suite.pixels[own], whole.pixels[other]), "what is left out changes nothing of the rest"
    with pytest.raises(ConfigError, match="cannot be left to test streams: did you mean 'fog'"):
        stream_suite(base, config, unseen=("frog",))
    with pytest.raises(ConfigError, match="nothing to adapt on"):
        stream_suite(base, config, unseen=config.corruptions)


def test_a_suite_of_too_few_images():
    with pytest.raises(ConfigError, match="shares"):
        stream_suite(toy_images(), StreamConfig(), adapt=0.6, test=0.5)
    with pytest.raises(DataError, match="too few"):
        stream_suite(toy_images(devices=1, per_device=4), StreamConfig())
