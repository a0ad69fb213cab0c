"""What the catalogues of all tasks share: public data sets by name, or else the user's own data by its path."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from persona.errors import ConfigError, DataError, nearest


def check_listed(name: str, catalogue: Collection[str]) -> None:
    """Refuse the name of a data set that is not in the catalogue.

    Raises:
        ConfigError: it is not.
    """
    if name not in catalogue:
        raise ConfigError(f"there is no data set {name!r} in the catalogue: {nearest(name, catalogue)}")


def own_data(source: str | Path, catalogue: Collection[str], kind: str) -> Path | None:
    """Where the user's own data lies, a ``kind`` of thing; ``None`` where ``source`` is a data set of the catalogue.

    Raises:
        DataError: neither a path nor a data set.
    """
    name, path = str(source), Path(source)
    if name in catalogue:
        return None
    if path.exists() or path.suffix or len(path.parts) > 1:
        return path
    raise DataError(f"{name!r} is neither {kind} nor a data set of the catalogue: {nearest(name, catalogue)}")
