import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import typer

from persona.errors import DataError
from pipelines import console


@dataclass
class Row:
    path: Path
    score: float


@pytest.fixture
def app():
    app = typer.Typer()

    @app.command()
    def table(as_json: console.JsonOption = False):
        out = console.Output(as_json)
        out.table("Methods", ["method", "uauc", "n"], [["host [a]", 0.90384, 3], ["none", None, 4]])
        out.say("a remark")
        out.result({"uauc": np.float32(0.5), "n": 3})

    @app.command()
    def broken_data(as_json: console.JsonOption = False):
        raise DataError("ratings.csv, line 7: the time [x] is text, write seconds")

    @app.command()
    def interrupted():
        raise KeyboardInterrupt

    @app.command()
    def bug():
        raise ZeroDivisionError("a bug")

    @app.command()
    def failed_check():
        return 1

    return app


def test_people_read_tables_and_remarks_on_stdout(app, capsys):
    assert console.run(app, ["table"]) == 0
    out, err = capsys.readouterr()
    assert "host [a]" in out
    assert "0.9038" in out
    assert "a remark" in out
    assert "{" not in out
    assert err == ""


def test_machines_get_one_document_on_stdout_and_people_the_rest_on_stderr(app, capsys):
    assert console.run(app, ["table", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"uauc": 0.5, "n": 3}
    assert "0.9038" in err
    assert "a remark" in err


def test_a_mendable_error_is_one_sentence_and_exit_code_two(app, capsys):
    assert console.run(app, ["broken-data"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "Error: ratings.csv, line 7: the time [x] is text, write seconds\n"


def test_a_mendable_error_is_json_when_asked_for(app, capsys):
    assert console.run(app, ["broken-data", "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert document == {"error": "ratings.csv, line 7: the time [x] is text, write seconds", "kind": "DataError"}


def test_an_interrupt_ends_with_130(app, capsys):
    assert console.run(app, ["interrupted"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(app):
    with pytest.raises(ZeroDivisionError, match="a bug"):
        console.run(app, ["bug"])


def test_a_command_can_end_with_a_code_of_its_own(app):
    assert console.run(app, ["failed-check"]) == 1


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [(["broken-dta"], "broken-data"), (["table", "--jsn"], "--json"), (["table", "extra"], "extra")],
)
def test_a_misspelt_name_is_answered_with_the_nearest(app, capsys, arguments, hint):
    assert console.run(app, arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert hint in err


def test_a_misspelt_name_is_json_when_asked_for(app, capsys):
    assert console.run(app, ["table", "--jon", "--json"]) == 2
    assert "--json" in json.loads(capsys.readouterr().out)["error"]


def test_nobody_reading_is_not_a_bug(tmp_path):
    script = tmp_path / "talk.py"
    script.write_text(
        "import sys, typer\nfrom pipelines import console\napp = typer.Typer()\n"
        "@app.command()\ndef talk():\n    [print('x' * 1000) for _ in range(1000)]\n"
        "sys.exit(console.run(app, []))\n"
    )
    talk = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    talk.stdout.close()
    assert talk.stderr.read() == ""
    assert talk.wait() == 1
    talk.stderr.close()


def test_json_is_strict():
    value = {"nan": float("nan"), "inf": [np.inf, 1.5], 3: Row(Path("a/b"), np.float64(0.25)), "set": {1}, "no": None}
    expected = {"nan": None, "inf": [None, 1.5], "3": {"path": "a/b", "score": 0.25}, "set": [1], "no": None}
    assert json.loads(console.to_json(value)) == expected
    assert json.loads(console.to_json(np.array([[1.0, np.nan]]))) == [[1.0, None]]
    with pytest.raises(TypeError, match="object"):
        console.to_json({"x": object()})


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "-"), (float("nan"), "-"), (0.12345, "0.1235"), (7, "7"), ("x", "x"), (True, "True")]
)
def test_cells_show_numbers_with_four_decimals(value, shown):
    assert console.cell(value) == shown


def test_progress_in_a_log_file_tells_its_end_and_note(capsys):
    with console.progress("host", 3) as advance:
        advance(note="uauc 0.8")
        advance(2, note="uauc 0.9")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("host 3/3, ")
    assert err.endswith("0 s left  uauc 0.9\n")


def test_progress_promises_nothing_before_anything_is_done(capsys, monkeypatch):
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.0)
    with console.progress("prototypes", 2) as advance:
        advance(0, "choosing K")
        advance(1)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "prototypes 0/2, 0 s  choosing K"
    assert second == "prototypes 1/2, 0 s, 0 s left"


def test_progress_on_a_terminal_is_a_bar_with_the_time_left(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with console.progress("editor", 4) as advance:
        advance(4, note="uauc 0.9")
    out, err = capsys.readouterr()
    assert out == ""
    assert "editor" in err
    assert "4/4" in err
    assert "left" in err


def test_the_time_left_counts_from_the_start_and_runs_on_between_steps(monkeypatch):
    """A first step that was over when the bar appeared counts, and so do steps longer than any memory of the bar."""
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    clock = console._Clock(4, started=40.0)
    assert clock.left() is None
    clock.advance(1)
    assert clock.left() == 180.0
    now = 130.0
    assert clock.left() == 150.0
    now = 160.0
    assert clock.advance(1) == 120.0
    assert clock.left() == 120.0
    now = 400.0
    assert clock.left() == 0.0, "late, but never negative"
