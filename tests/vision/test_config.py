import pytest

from persona.errors import ConfigError
from vision.config import EDITOR_SETTINGS, VisionConfig


def test_settings_round_trip():
    config = VisionConfig(host="resnet18", host_groups="0", test_groups="4, 5", tau=2)
    assert VisionConfig.from_dict(config.as_dict()) == config
    assert config.split_config().test_groups == ("4", "5")
    assert isinstance(config.tau, float)


def test_hosts_are_shared_between_editors():
    config = VisionConfig()
    assert set(config.editor_settings()) == set(EDITOR_SETTINGS)
    assert set(config.host_settings()) | set(EDITOR_SETTINGS) | {"mode"} == set(config.as_dict())
    assert VisionConfig(rank=2, adaptive="norms").host_settings() == config.host_settings()
    assert VisionConfig(seed=1).host_settings() != config.host_settings()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "joined"}, "did you mean 'joint'"),
        ({"context": "picture"}, "unknown context"),
        ({"monitor": "logloss"}, "unknown monitor"),
        ({"host": "resnet"}, "unknown host"),
        ({"adaptive": "none"}, "unknown adaptive"),
        ({"step": 30}, "1 <= step <= context_images"),
        ({"edit_dropout": 1.0}, "between 0 and 1"),
        ({"rank": 0}, "rank"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"editor_epochs": 0}, "epochs"),
        ({"devices_per_batch": 0}, "devices"),
        ({"adapt_share": 0.95}, "leave no device"),
        ({"validation_devices": 0}, "at least 1"),
        ({"seed": "0"}, "has to be a whole number"),
        ({"colour": 1}, "unknown setting 'colour'"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        VisionConfig.from_dict(settings)
