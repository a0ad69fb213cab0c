import pytest

from persona.errors import ConfigError, DataError
from pipelines.serving.config import ServingConfig, read_api_keys


def test_keys_are_read_one_a_line(tmp_path):
    path = tmp_path / "keys"
    path.write_text("# of the shop\n" + "a" * 20 + "\n\n  " + "b" * 16 + "\n")
    assert read_api_keys(path) == ("a" * 20, "b" * 16)


@pytest.mark.parametrize("text", ["", "# none\n", "short\n"])
def test_files_without_safe_keys_are_refused(tmp_path, text):
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(ConfigError):
        read_api_keys(path)


def test_keys_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_api_keys(tmp_path / "none")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError):
        read_api_keys(tmp_path / "bytes")


@pytest.mark.parametrize("setting", [{"queue": 0}, {"target_ms": -1.0}, {"drain_seconds": -0.1}, {"poll_seconds": 0.0}])
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ConfigError, match=next(iter(setting))):
        ServingConfig(**setting)
