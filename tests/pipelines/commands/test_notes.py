"""Lines under the tables: what persona is, who applies no edits, who kept its start, what has to be fetched once."""

from pathlib import Path

import numpy as np

from persona.comparison import Measured
from pipelines import console
from pipelines.commands import notes
from pipelines.commands.recsys import show
from pipelines.steps.evaluate import Comparison
from pipelines.steps.release import Released
from pipelines.tracking.registry import Registered

UNITS = np.arange(4)


def measured(method, **more):
    values = np.linspace(0.1, 0.4, 4)
    return Measured(method, {"uauc": 0.25, "ndcg_10": 0.25}, {"uauc": values, "ndcg_10": values}, UNITS, **more)


def compared(*seeds):
    return Comparison.of_seeds(
        [{m.method: m for m in (measured("host", epochs=5, best_epoch=3), *seed)} for seed in seeds],
        protocol="time",
        settings={"host": "sasrec"},
        unit="users",
        headlines=("uauc", "ndcg_10"),
    )


def test_what_persona_is_stands_under_the_table():
    chosen = {"gate": 0.5, "held_back": 1.0, "prototypes": 12.0}
    assert notes.under(compared([measured("persona", chosen=chosen)])) == [
        "persona: mode held_back, gate 0.5, 12 prototypes"
    ]


def test_seeds_that_chose_differently_are_all_told():
    seeds = ([measured("persona", chosen={mode: 1.0, "prototypes": 4.0})] for mode in ("joint", "generated", "joint"))
    assert notes.under(compared(*seeds)) == [
        "persona: mode joint, 4 prototypes | mode generated, 4 prototypes",
    ]


def test_at_gate_0_nothing_is_claimed_for_edits():
    own = measured("persona", chosen={"gate": 0.0, "refreshed": 1.0})
    other = measured("persona_cross_fitted", chosen={"gate": 0.0})
    assert notes.under(compared([own, other])) == [
        "persona: mode refreshed, no edits (gate 0): it is its host",
        "persona_cross_fitted: no edits (gate 0): it is its host",
    ]


def test_who_kept_its_start_says_so():
    kept = [measured("finetune_all", epochs=4, best_epoch=-1)]
    moved = [measured("finetune_all", epochs=4, best_epoch=0)]
    assert notes.under(compared(kept)) == ["finetune_all kept its start: no epoch was better on validation"]
    assert notes.under(compared(kept, moved)) == [
        "finetune_all kept its start with 1 of 2 seeds: no epoch was better on validation"
    ]
    assert notes.under(compared([measured("popularity")])) == [], "nothing was trained"


def test_a_body_that_has_to_be_fetched_once_stands_beside_a_refresh(capsys):
    found = compared([measured("persona", refresh_bytes=46, body_bytes=1_233_792, chosen={"refreshed": 1.0})])
    assert [notes.sent(row) for row in found.rows] == ["0", "46 + 1,233,792 once"]
    show.comparison(found, console.Output(as_json=False))
    out = capsys.readouterr().out
    assert "1,233,792" in out
    assert "persona: mode refreshed" in out
    assert found.rows[1].as_dict()["body_bytes"] == 1_233_792


def test_a_release_says_whether_it_is_the_candidate(capsys):
    made = Released(Path("work/bundle"), Registered("persona-recsys", 3, "models:/persona-recsys/3"), "joint", "d" * 64)
    for gate, candidate in (("passed", True), ("refused: on validation it is below item_knn", False)):
        told = Released(**{**vars(made), "gate": gate, "candidate": candidate})
        show.released(told, console.Output(as_json=False))
        out = " ".join(capsys.readouterr().out.split())
        assert ("with the alias 'candidate'" in out) == candidate
        assert ("Gate: refused: on validation it is below item_knn" in out) != candidate
