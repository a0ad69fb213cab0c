"""Bars of trainings and methods."""

from pipelines import console
from pipelines.commands import bars


def test_methods_that_train_nothing_are_no_steps(capsys, monkeypatch):
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.0)
    with console.progress("trained methods", 2) as advance:
        notify = bars.methods(advance, "uauc", {"popularity"})
        notify("time", "host", {"epoch": 0.0, "uauc": 0.5})
        notify("time", "popularity", None)
        notify("time", "host", None)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "trained methods 0/2",
        "trained methods 0/2",
        "trained methods 1/2",
    ]


def test_a_training_may_end_before_its_last_epoch_and_the_bar_says_so(capsys, monkeypatch):
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.0)
    with bars.trainings("uauc", lambda training: 3) as on_epoch:
        for epoch in range(3):
            on_epoch("host", {"epoch": float(epoch), "uauc": 0.5})
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith("host 1/3, 0 s, 0 s left at most")
    assert last.startswith("host 3/3")
    assert "at most" not in last
