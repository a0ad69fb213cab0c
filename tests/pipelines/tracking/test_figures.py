import io

import pytest

from persona.bootstrap import Interval, SeedsInterval
from persona.comparison import Row
from pipelines.tracking.figures import PERSONA_COLOUR, learning_curves, method_comparison

HISTORIES = {
    "host": [{"epoch": 0.0, "loss": 0.7, "uauc": 0.5}, {"epoch": 1.0, "loss": 0.6, "uauc": 0.8}],
    "duet": [{"epoch": 0.0, "loss": 0.9, "uauc": 0.6}],
}


def row(method, mean=None):
    change = (
        {} if mean is None else {m: SeedsInterval(Interval(mean, mean - 0.1, mean + 0.2), (mean,)) for m in METRICS}
    )
    return Row(method, {"uauc": 0.9, "ndcg_10": 0.5}, change, seconds=1.0, refresh_bytes=8)


METRICS = ("uauc", "ndcg_10")
ROWS = [row("host"), row("duet", 0.3), row("persona_joint", -0.2)]


def drawn(figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def test_learning_curves_show_every_training_by_epoch():
    figure = learning_curves(HISTORIES, "uauc", "time")
    loss, validation = figure.axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in loss.lines}
    assert lines == {"host": [[0, 0.7], [1, 0.6]], "duet": [[0, 0.9]]}
    assert [line.get_xydata().tolist() for line in validation.lines] == [[[0, 0.5], [1, 0.8]], [[0, 0.6]]]
    assert "time" in validation.get_title()
    assert validation.get_ylabel() == "uauc"
    assert [text.get_text() for text in validation.get_legend().get_texts()] == ["host", "duet"]
    assert drawn(figure).startswith(b"\x89PNG")


def test_the_comparison_shows_each_difference_with_its_interval():
    figure = method_comparison(ROWS, METRICS, "time", seeds=3)
    assert len(figure.axes) == 2
    for axes, metric in zip(figure.axes, METRICS, strict=True):
        assert axes.get_title() == f"time/{metric}"
        names = [label.get_text() for label in axes.get_yticklabels()]
        assert names == ["persona_joint", "duet"], "read from the top: the order of the table"
        bars = [
            line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_ydata()[0] == line.get_ydata()[1]
        ]
        assert [list(bar.get_xdata()) for bar in bars] == [pytest.approx([-0.3, 0.0]), pytest.approx([0.2, 0.5])]
        assert [bar.get_color() == PERSONA_COLOUR for bar in bars] == [True, False]
        assert "against the host (0." in axes.get_xlabel()
    assert "Mean of 3 seeds" in figure.get_suptitle()
    assert drawn(figure).startswith(b"\x89PNG")


def test_a_comparison_of_the_host_alone_can_be_drawn():
    figure = method_comparison(ROWS[:1], METRICS, "paper", seeds=1)
    assert "Mean of 1 seed," in figure.get_suptitle()
    assert drawn(figure).startswith(b"\x89PNG")
