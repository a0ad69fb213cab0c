from dataclasses import fields, replace

import pytest

from persona.errors import ConfigError
from persona.settings import PROCESSOR_SETTINGS
from recsys.config import EDITOR_SETTINGS, MODES, RECIPES, SCALE_SETTINGS, RecsysConfig
from recsys.data.protocols import PROTOCOLS
from recsys.methods import Problem
from tests.recsys.toy import SMALL, personalised, walks


def test_the_settings_survive_json():
    config = RecsysConfig(host="din", seed=3, dropout=0.1)
    assert RecsysConfig.from_dict(config.as_dict()) == config


def test_zero_and_negative_stand_for_the_preset():
    paper = RecsysConfig(preset="paper").host_config(n_items=9)
    assert (paper.dim, paper.max_length, paper.dropout) == (32, 10, 0.0)
    modern = RecsysConfig(preset="modern").host_config(n_items=9)
    assert (modern.dim, modern.max_length, modern.dropout) == (64, 50, 0.2)
    own = RecsysConfig(preset="modern", dim=16, max_length=7, dropout=0.0).host_config(n_items=9)
    assert (own.dim, own.max_length, own.dropout) == (16, 7, 0.0)


def test_a_preset_brings_its_training_and_what_is_given_wins():
    modern, paper = RecsysConfig(), RecsysConfig(preset="paper")
    assert (modern.preset, modern.loss, modern.sequences, modern.monitor) == ("modern", "softmax", True, "ndcg_10")
    published = (paper.loss, paper.negatives, paper.batch_size, paper.sequences, paper.monitor, paper.learning_rate)
    assert published == ("bce", 4, 1024, False, "uauc", 1e-3)
    mixed = RecsysConfig(preset="paper", loss="gbce", sequences=True)
    assert (mixed.loss, mixed.sequences, mixed.negatives) == ("gbce", True, 4)
    assert RecsysConfig.from_dict({"preset": "paper", "negatives": 9}) == replace(paper, negatives=9)


def test_the_defaults_that_are_shown_are_those_of_the_default_preset():
    shown = {f.name: f.default for f in fields(RecsysConfig)}
    assert shown == {f.name: getattr(RecsysConfig(), f.name) for f in fields(RecsysConfig)}
    assert {name: shown[name] for name in RECIPES["modern"]} == RECIPES["modern"]


@pytest.mark.parametrize("kind", [{"host": "din"}, {"table_optimizer": "rowwise_adagrad"}], ids=["din", "sharded"])
def test_the_default_preset_trains_by_rows_where_it_has_to(kind):
    config = RecsysConfig(**kind)
    assert (config.loss, config.sequences) == ("sampled_softmax", False)


def test_what_a_preset_brought_goes_with_it():
    """A step that changes the preset takes over from the step before what was given there, not what the preset brought."""
    before = RecsysConfig(preset="paper", negatives=9, epochs=3, seed=2).as_dict()
    own = RecsysConfig.own(before)
    assert {name for name in own if own[name] != RecsysConfig().as_dict()[name]} == {
        "preset",
        "negatives",
        "epochs",
        "seed",
    }
    assert RecsysConfig.from_dict(own).as_dict() == before
    assert RecsysConfig.from_dict(own | {"preset": "modern"}) == RecsysConfig(negatives=9, epochs=3, seed=2)
    assert RecsysConfig.own({}) == {}


def test_a_setting_that_there_is_not_is_refused_by_name():
    with pytest.raises(TypeError, match="no setting 'lerning_rate'"):
        RecsysConfig(lerning_rate=0.1)


def test_every_setting_reaches_the_part_it_belongs_to():
    config = RecsysConfig(
        seed=5,
        loss="gbce",
        negatives=7,
        batch_size=33,
        sequences=True,
        monitor="ndcg_10",
        epochs=4,
        patience=3,
        min_epochs=2,
        weight_decay=0.1,
        transfer="none",
        head="low_rank",
        rank=2,
        bound="clip",
        tau=0.5,
        width=16,
    )
    fit = config.fit_config(0.25)
    found = (fit.seed, fit.epochs, fit.patience, fit.min_epochs, fit.weight_decay, fit.learning_rate)
    assert found == (5, 4, 3, 2, 0.1, 0.25)
    loss = config.loss_config()
    assert (loss.loss, loss.negatives, loss.batch_size, loss.sequences, loss.monitor) == (
        "gbce",
        7,
        33,
        True,
        "ndcg_10",
    )
    editor = config.editor_config(context_dim=8)
    assert (editor.transfer, editor.head, editor.rank, editor.bound, editor.tau, editor.width) == (
        "none",
        "low_rank",
        2,
        "clip",
        0.5,
        16,
    )
    assert editor.context_dim == 8


def test_a_setting_belongs_to_the_host_or_to_the_editor():
    config = RecsysConfig()
    host, editor = config.host_settings(), config.editor_settings()
    assert set(editor) == set(EDITOR_SETTINGS)
    assert not set(host) & set(editor)
    assert {f.name for f in fields(config)} == {*host, *editor, "mode", "seen", *SCALE_SETTINGS, *PROCESSOR_SETTINGS}


def test_what_large_tables_need_changes_no_record_of_what_does_without():
    config = RecsysConfig()
    assert not set(SCALE_SETTINGS) & set(config.as_dict())
    scaled = RecsysConfig(table_optimizer="rowwise_adagrad", table_learning_rate=0.2, checkpoint_steps=7)
    assert RecsysConfig.from_dict(scaled.as_dict()) == scaled
    assert set(scaled.host_settings()) - set(config.host_settings()) == {"table_optimizer", "table_learning_rate"}
    assert scaled.fit_config(0.1).checkpoint_steps == 7


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"mode": "heldback"}, "unknown mode 'heldback': did you mean 'held_back'"),
        ({"protocol": "papper"}, "unknown protocol 'papper': did you mean 'paper'"),
        ({"host": "sasrce"}, "unknown host 'sasrce': did you mean 'sasrec'"),
        ({"preset": "modren"}, "unknown preset 'modren': did you mean 'modern'"),
        ({"loss": "bcee"}, "unknown loss 'bcee': did you mean 'bce'"),
        ({"transfer": "stakced"}, "unknown transfer 'stakced': did you mean 'stacked'"),
        ({"head": "ful"}, "unknown head 'ful': did you mean 'full'"),
        ({"bound": "tan"}, "unknown bound 'tan': did you mean 'tanh'"),
        ({"monitor": "uacu"}, "monitor 'uacu' cannot select .* did you mean 'uauc'"),
        ({"protocol": "full", "preset": "paper"}, "monitor 'uauc' cannot select epochs under protocol full: .*ndcg_10"),
        ({"monitor": "logloss"}, "monitor 'logloss' cannot"),  # smaller is better
        ({"hold_back": 1.0}, "hold_back is 1.0, but it is a share between 0 and 1"),
        ({"edit_dropout": 0.0}, "edit_dropout is 0.0, but it is a share between 0 and 1"),
        ({"validation_events": 0}, "validation_events is 0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"editor_learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"seed": -1}, "seed"),
        ({"dim": 31}, "dim has to be a multiple of heads"),
        ({"dropout": 1.0}, "dropout has to be a number from 0 to below 1"),
        ({"tau": 0.0}, "tau is 0.0"),
        ({"negatives": 0}, "negatives is 0"),
        ({"table_optimizer": "adagrad"}, "unknown table optimizer 'adagrad': did you mean 'rowwise_adagrad'"),
        ({"table_learning_rate": 0.0}, "table_learning_rate is 0.0"),
        ({"checkpoint_steps": -1}, "checkpoint_steps cannot be negative"),
        ({"sequences": True, "table_optimizer": "rowwise_adagrad"}, "use rows"),
        (
            {"loss": "softmax", "table_optimizer": "rowwise_adagrad"},
            "its rows lie in pieces: choose loss = sampled_softmax",
        ),
        ({"loss": "softmax", "host": "din"}, "din scores every candidate by itself: choose loss = sampled_softmax"),
    ],
)
def test_a_wrong_setting_is_named_before_any_work(wrong, sentence):
    with pytest.raises(ConfigError, match=sentence):
        RecsysConfig(**wrong)


@pytest.mark.parametrize("name", [f.name for f in fields(RecsysConfig)])
def test_a_value_of_the_wrong_type_is_refused(name):
    """As a settings file may hold it."""
    kinds = {f.name: type(f.default) for f in fields(RecsysConfig)}
    wrong = {str: 3, int: "3", float: "0.5", bool: "yes"}[kinds[name]]
    with pytest.raises(ConfigError, match=f"{name} is {wrong!r}, but it has to be"):
        RecsysConfig.from_dict({name: wrong})
    if kinds[name] is int:
        with pytest.raises(ConfigError, match=f"{name} is 2.5, but it has to be a whole number"):
            RecsysConfig.from_dict({name: 2.5})
        with pytest.raises(ConfigError, match=f"{name} is True"):
            RecsysConfig.from_dict({name: True})


def test_a_whole_number_will_do_for_a_decimal_one():
    assert RecsysConfig.from_dict({"tau": 2}).tau == 2.0
    assert isinstance(RecsysConfig.from_dict({"tau": 2}).tau, float)


def test_an_unknown_setting_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="unknown setting 'lerning_rate': did you mean 'learning_rate'"):
        RecsysConfig.from_dict({"lerning_rate": 0.1})


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_can_select_epochs_is_what_a_protocol_measures(protocol):
    measured = set(
        Problem(walks(), replace(SMALL, protocol=protocol, monitor="mrr")).validation.run(personalised()).summary
    )
    for name in measured:
        if name == "logloss":
            continue
        assert replace(SMALL, protocol=protocol, monitor=name).monitor == name
    with pytest.raises(ConfigError) as refused:
        replace(SMALL, protocol=protocol, monitor="-")
    assert set(str(refused.value).partition("Known: ")[2].split(", ")) == measured - {"logloss"}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_taken(mode):
    assert RecsysConfig(mode=mode).mode == mode
