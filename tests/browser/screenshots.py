"""Make the pictures of docs/mlflow.md again: run the pipeline on films, open MLflow's UI, take its pages.

    python -m tests.browser.screenshots [--folder work/workbench]

Takes minutes, most of them for the pipeline; with ``--folder`` a finished one is taken up again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import polars as pl

from recsys.data import catalogue
from recsys.data.columns import ITEM, USER
from tests.browser import pages, workbench
from tests.browser.workbench import Workbench

TARGET = Path(__file__).parents[2] / "docs" / "screenshots"
# The most active users and the most rated films, and a small host, so that it takes minutes.
USERS, FILMS = 300, 500
SETTINGS = (
    "--preset",
    "paper",
    "--host",
    "gru4rec",
    "--dim",
    "16",
    "--max-length",
    "10",
    "--width",
    "16",
    "--epochs",
    "12",
    "--batch-size",
    "512",
)
METHODS = ("--methods", "persona_held_back,finetune_adaptive")


def prepare(folder: Path) -> Workbench:
    """The workbench in ``folder``, built if it is not there yet."""
    said = folder / "said.json"
    if said.exists():
        return Workbench(folder, json.loads(said.read_text()))
    folder.mkdir(parents=True, exist_ok=True)
    log = catalogue.load("movielens-small")
    assert log.titles is not None
    frame = log.frame
    for column, count in ((USER, USERS), (ITEM, FILMS)):
        most = frame[column].value_counts(sort=True)[column].head(count)
        frame = frame.filter(pl.col(column).is_in(most.implode()))
    frame.join(log.titles, on=ITEM, how="left").write_csv(folder / "ratings.csv")
    built = workbench.build(folder, folder / "ratings.csv", (*SETTINGS, *METHODS))
    said.write_text(json.dumps(built.said))
    return built


def main() -> None:
    """Build, open, take."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="Working directory to make or to take up.")
    arguments = parser.parse_args()
    TARGET.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        built = prepare((arguments.folder or Path(temporary)).absolute())
        with workbench.ui(built) as address, pages.browser() as page:
            for shot in pages.shots(built):
                pages.visit(page, address, shot)
                path = pages.save(page, shot, TARGET, built)
                print(f"{path}: {path.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
