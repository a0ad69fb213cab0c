import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persona.errors import ConfigError
from recsys.hosts import HOSTS, HostConfig, make_host
from recsys.hosts.config import KINDS
from tests.recsys.hosts.common import CASES


@pytest.mark.parametrize(("kind", "preset"), CASES)
def test_presets_round_trip_through_json(kind, preset):
    config = HostConfig.preset(kind, preset, 100)
    assert (config.kind, config.variant, config.n_items) == (kind, preset, 100)
    assert HostConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config


def test_the_paper_preset_is_the_published_size():
    assert HostConfig.preset("sasrec", "paper", 9) == HostConfig("sasrec", 9, "paper", 32, 10, 4, 1, 128, 0.0)
    host = make_host(HostConfig.preset("din", "paper", 9))
    assert [(s.name, s.in_features, s.out_features) for s in host.adaptive.specs] == [
        ("head.0", 64, 128),
        ("head.2", 128, 64),
        ("head.4", 64, 1),
    ]


def test_the_modern_preset_is_wide_long_and_regularised():
    for kind in KINDS:
        config = HostConfig.preset(kind, "modern", 9)
        assert (config.dim, config.max_length, config.dropout) == (64, 50, 0.2)
    assert HostConfig.preset("sasrec", "modern", 9).blocks == 2


def test_overrides():
    assert HostConfig.preset("sasrec", "modern", 9, dropout=0.5, dim=16).dropout == 0.5


def test_every_kind_has_a_host():
    assert tuple(HOSTS) == KINDS
    for kind, host in HOSTS.items():
        assert type(make_host(HostConfig.preset(kind, "paper", 5))) is host


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: HostConfig.preset("sasrce", "paper", 9), "unknown host 'sasrce': did you mean 'sasrec'"),
        (lambda: HostConfig.preset("din", "papre", 9), "unknown preset 'papre': did you mean 'paper'"),
        (lambda: HostConfig.preset("din", "paper", 9, droput=0.1), "setting 'droput': did you mean 'dropout'"),
        (lambda: HostConfig("din", 9, "old", feed_forward=8), "unknown preset 'old'"),
        (lambda: HostConfig.from_dict({"kind": "din", "n_items": 4, "width": 3}), "unknown host setting 'width'"),
        (lambda: HostConfig.from_dict({"kind": "din"}), "'n_items' is missing"),
        (lambda: HostConfig.preset("gru4rec", "paper", 9, heads=2), "gru4rec has no setting 'heads': leave it at 1"),
        (lambda: HostConfig.preset("din", "paper", 9, blocks=2), "din has no setting 'blocks'"),
        (lambda: HostConfig.preset("gru4rec", "paper", 9, feed_forward=8), "no setting 'feed_forward': leave it at 0"),
        (lambda: HostConfig.preset("sasrec", "paper", 9, feed_forward=1), "feed_forward of sasrec .* at least 2"),
        (lambda: HostConfig.preset("sasrec", "paper", 9, dim=30), "multiple of heads, but 30 is none of 4"),
        (lambda: HostConfig.preset("din", "paper", 0), "n_items has to be a whole number from 1 up, not 0"),
        (lambda: HostConfig.preset("din", "paper", 9, dim=True), "dim has to be a whole number"),
        (lambda: HostConfig.preset("din", "paper", 9, max_length="10"), "max_length has to be a whole number"),
        (lambda: HostConfig.preset("din", "paper", 9, dropout=1.0), "dropout has to be a number from 0 to below 1"),
        (lambda: HostConfig.preset("din", "paper", 9, dropout=True), "dropout has to be a number"),
        (lambda: HostConfig.preset("din", "paper", 9, dropout="0"), "dropout has to be a number"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(call, sentence):
    with pytest.raises(ConfigError, match=sentence):
        call()


@given(st.integers(1, 4), st.integers(1, 8), st.integers(1, 3), st.integers(2, 9), st.floats(0, 0.9))
def test_any_valid_setting_round_trips(heads, width, blocks, feed_forward, dropout):
    config = HostConfig("sasrec", 5, "modern", heads * width, 3, heads, blocks, feed_forward, dropout)
    assert HostConfig.from_dict(config.as_dict()) == config
