"""The level that answers, and why it is a lower one than was asked for."""

import numpy as np
import pytest

from persona.answering import NO_BANK, NO_EDITOR, Contexts, check_level, lacking, plan
from persona.cloud import EditTables
from persona.errors import ConfigError
from persona.wire import LEVELS, NOT_FINITE, NOT_TRUSTED

NOTHING = "nothing is known"


def tables(bank=True):
    """One layer of one weight; two prototypes, at 0 and at 2; edits E(z) = z; the region of trust ends at 6."""
    column = np.ones((1, 1))
    tensors = {
        "grams": column[None],
        "prototypes": np.array([[0.0], [2.0]], dtype=np.float32),
        "square": np.array([0.0, 4.0]),
        "projected": np.array([[0.0, 2.0]]),
        "directions": np.ones((1, 1), dtype=np.float32),
        "basis": column,
        "start": np.array([[0.0], [2.0]]),
    }
    header = {
        "host": "h",
        "bank": "ab" * 32 if bank else "",
        "about": {},
        "layers": [["layer", 1, 1, False]],
        "bound": {"kind": "none", "tau": 1.0},
        "scales": [1.0],
        "weight_norm": 3.0,
    }
    return EditTables(tensors if bank else {"grams": column[None]}, header)


def contexts(*values):
    column = np.array(values, dtype=np.float32)[:, None]
    return lambda: Contexts(np.nan_to_num(column)[:, :, None], column)


def test_every_row_is_answered_at_its_level_or_below():
    values = (1.5, 1.5, 1.5, 1.5, 7.0, np.nan, 1.5)
    levels = [*LEVELS, "edit", "edit", "edit"]
    found = plan(tables(), levels, [""] * 6 + [NOTHING], contexts(*values))
    assert found.levels == ["host", "prototype", "basis", "edit", "prototype", "prototype", "host"]
    assert found.reasons == ["", "", "", "", NOT_TRUSTED, NOT_FINITE, NOTHING]
    assert [found.of(row)[2] for row in range(7)] == [1, 1, 1, 1, 1, 0, None]
    assert [found.of(row)[4] for row in range(5)] == pytest.approx([0, 2, 1.5, 1.5, 2], abs=0.01)
    found.refuse(3)
    assert found.of(3) == ("host", NOT_FINITE, 1, 0.5, 0.0)


def test_the_editor_runs_only_where_it_is_needed():
    def unwanted():
        raise AssertionError("the editor ran")

    alone = plan(None, ["edit", "host"], ["", ""], unwanted)
    assert (alone.levels, alone.reasons, alone.edits) == (["host", "host"], [NO_EDITOR, ""], None)
    unknown = plan(tables(), ["edit"], [NOTHING], unwanted)
    assert unknown.of(0) == ("host", NOTHING, None, None, 0.0)


def test_what_a_bundle_lacks():
    assert [lacking(None, level) for level in LEVELS] == ["", NO_EDITOR, NO_EDITOR, NO_EDITOR]
    assert [lacking(tables(bank=False), level) for level in LEVELS] == ["", NO_BANK, NO_BANK, ""]
    assert [lacking(tables(), level) for level in LEVELS] == [""] * 4
    with pytest.raises(ConfigError, match="did you mean 'edit'"):
        check_level("edti")
