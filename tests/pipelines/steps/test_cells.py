from concurrent.futures import Future
from dataclasses import replace
from queue import Queue

import numpy as np
import pytest

from persona.errors import ConfigError, FormatError
from pipelines.steps.cells import Cell, _relay, cells_of, measure_cells
from recsys.task import RECSYS
from tests.recsys.toy import SMALL, walks
from tests.vision.common import toy_images
from vision.config import VisionConfig
from vision.task import VISION

METHODS = ("host", "finetune_adaptive")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cells") / "prepared"
    walks().save(folder)
    return folder


@pytest.fixture(scope="module")
def one_by_one(prepared, tmp_path_factory):
    """Two seeds, measured in this process, and the notes on the way."""
    notes = []
    cells = cells_of(SMALL, ["paper"], 2, METHODS, prepared, tmp_path_factory.mktemp("serial"))
    return measure_cells(RECSYS, cells, 1, lambda *note: notes.append(note)), notes


def test_there_is_a_cell_for_every_protocol_and_seed(tmp_path):
    cells = cells_of(replace(SMALL, seed=7), ["time", "paper"], 2, METHODS, tmp_path / "a", tmp_path / "b")
    assert [(cell.config.protocol, cell.config.seed) for cell in cells] == [
        ("time", 7),
        ("time", 8),
        ("paper", 7),
        ("paper", 8),
    ]
    assert all(replace(c.config, protocol="paper", seed=0) == SMALL for c in cells), "nothing else differs"
    assert cells[1] == Cell(cells[1].config, METHODS, tmp_path / "a", tmp_path / "b")
    assert cells[1].name == "time gru4rec seed 8"


def test_a_wrong_protocol_is_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(ConfigError, match="unknown protocol 'papper'"):
        cells_of(SMALL, ["time", "papper"], 1, METHODS, tmp_path, tmp_path)


def test_a_cell_reports_every_epoch_and_every_method(one_by_one):
    measured, notes = one_by_one
    assert [list(of_seed) for of_seed in measured] == [list(METHODS)] * 2
    expected = []
    for seed in (0, 1):
        for method in METHODS:
            expected += [(f"paper gru4rec seed {seed}", method, epoch) for epoch in (0.0, 1.0, None)]
    assert [(cell, name, metrics and metrics["epoch"]) for cell, name, metrics in notes] == expected
    first, second = measured
    assert first["host"].summary != second["host"].summary, "seeds differ"


@pytest.mark.slow
def test_cells_in_processes_of_their_own_measure_the_same(one_by_one, prepared, tmp_path):
    expected, expected_notes = one_by_one
    notes = []
    cells = cells_of(SMALL, ["paper"], 2, METHODS, prepared, tmp_path)
    measured = measure_cells(RECSYS, cells, 2, lambda *note: notes.append(note))
    for found, wanted in zip(measured, expected, strict=True):
        for method in METHODS:
            assert found[method].summary == wanted[method].summary
            for metric, values in wanted[method].per_unit.items():
                np.testing.assert_array_equal(found[method].per_unit[metric], values)
    assert sorted(map(str, notes)) == sorted(map(str, expected_notes))


def test_the_first_process_that_fails_ends_the_comparison_with_its_error():
    done, failed, running = Future(), Future(), Future()
    done.set_result({})
    failed.set_exception(FormatError("nowhere holds no sequence data"))
    notes = Queue()
    notes.put(("cell", "host", None))
    seen = []
    with pytest.raises(FormatError, match="nowhere holds no sequence data"):
        _relay([done, running, failed], notes, lambda *note: seen.append(note))
    assert seen == [("cell", "host", None)]


def test_notes_are_passed_on_to_the_last():
    done, notes, seen = Future(), Queue(), []
    done.set_result({})
    for epoch in range(5):
        notes.put(("cell", "host", {"epoch": epoch}))
    _relay([done], notes, lambda *note: seen.append(note[2]["epoch"]))
    assert seen == [0, 1, 2, 3, 4]


TINY = VisionConfig(
    host="compact", adapt_share=0.3, test_share=0.3, context_images=3, step=3, batch_size=16, epochs=1, editor_epochs=1
)


@pytest.mark.slow
def test_cells_of_images_are_shared_by_processes_as_well(tmp_path):
    """On the seeds of one protocol, as of any task."""
    toy_images().save(tmp_path / "prepared")
    cells = cells_of(TINY, ["stream"], 2, ("host", "t3a"), tmp_path / "prepared", tmp_path / "cells")
    assert [cell.name for cell in cells] == ["stream compact seed 0", "stream compact seed 1"]
    notes = []
    shared = measure_cells(VISION, cells, 2, lambda *note: notes.append(note))
    assert {note[0] for note in notes} == {cell.name for cell in cells}
    again = [replace(cell, folder=tmp_path / "alone") for cell in cells]
    for found, wanted in zip(shared, measure_cells(VISION, again, 1, lambda *note: None), strict=True):
        for method in ("host", "t3a"):
            np.testing.assert_array_equal(found[method].per_unit["accuracy"], wanted[method].per_unit["accuracy"])
