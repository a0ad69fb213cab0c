import io

import pytest
import torch

from persona.prototypes import Candidate, Choice, Server
from pipelines.tracking import bank_figures
from tests.persona.prototypes.world import codes, editor, partition


def drawn(figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=50)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def server():
    return Server(editor(), partition().bank)


def texts(figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_the_map_names_every_prototype_and_its_share(server):
    figure = bank_figures.prototype_map(server, codes(300, groups=4))
    [axes] = figure.axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert [label.partition(":")[0] for label in labels] == ["0", "1", "2", "3"]
    assert sum(float(label.partition(": ")[2].rstrip("%")) for label in labels) == pytest.approx(100, abs=2)
    assert texts(figure) == ["0", "1", "2", "3"]
    assert "300 contexts" in axes.get_title()
    assert drawn(figure)


def test_contexts_that_all_agree_can_be_drawn(server):
    assert drawn(bank_figures.prototype_map(server, codes(1).expand(5, -1, -1)))


def test_the_choice_of_k_marks_what_was_chosen():
    candidates = tuple(Candidate(k, 0.7 + 0.01 * k, 0.001, 0.9, 0.8, 10.0 / k) for k in (1, 2, 4))
    figure = bank_figures.choice_of_k(Choice(candidates, 4), "uauc", {"host": 0.69, "edit": 0.75})
    left, right = figure.axes
    assert left.get_xlabel() == right.get_xlabel() == "prototypes K (chosen: 4)"
    assert {"host", "edit"} <= set(texts(figure))
    assert drawn(figure)


def test_movement_shows_its_numbers():
    figure = bank_figures.movement(torch.tensor([[0.0, 0.125], [1.5, 0.0]]), ["head.0", "head.2"])
    assert {"0.125", "1.5"} <= set(texts(figure))
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["head.0", "head.2"]
    assert drawn(bank_figures.movement(torch.zeros(1, 1), ["only"]))


def test_the_flow_counts_who_moved():
    figure = bank_figures.assignment_flow(torch.tensor([[5, 2, 1], [0, 10, 0]]), [0, 1, 1])
    assert "3 of 18 changed" in figure.axes[0].get_title()
    retired = bank_figures.assignment_flow(torch.tensor([[0], [10]]), [1])
    assert "0 of 10 changed" in retired.axes[0].get_title(), "the second continues as the first"
    assert "0  (8)" in texts(figure)
    assert "2  (1)" in texts(figure)
    assert drawn(figure)
