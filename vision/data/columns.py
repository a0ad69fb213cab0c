"""The names of columns and arrays, in one place: those that are recognised in other people's files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from persona.errors import DataError, nearest

# Each role's names in tiers, most telling first, in the form that ``normalise`` gives. A tier is asked only where no
# tier before it has a hit; two hits in one tier are ambiguous, and the user has to choose.
SYNONYMS: dict[str, tuple[frozenset[str], ...]] = {
    "image": (
        frozenset({"image", "images", "img", "pixels", "x"}),
        frozenset({"png", "jpeg", "jpg", "bytes", "imagebytes", "data"}),
        frozenset({"path", "imagepath", "file", "filename", "imagefile"}),
    ),
    "label": (
        frozenset({"label", "labels", "y"}),
        frozenset({"class", "classname", "classid", "target", "targets", "category", "expression", "emotion", "digit"}),
    ),
    "device": (
        frozenset({"device", "deviceid", "devices"}),
        frozenset({"writer", "writerid", "user", "userid", "client", "clientid", "subject", "subjectid", "person"})
        | frozenset({"personid", "camera", "cameraid", "station", "stationid", "location", "locationid", "site"})
        | frozenset({"hospital", "patient", "patientid", "speaker", "identity"}),
        frozenset({"domain", "environment", "style", "dataset", "source"}),
    ),
    "group": (
        frozenset({"group", "groupid", "population"}),
        frozenset({"hsf", "cohort", "domain", "environment", "region", "country"}),
    ),
    "order": (
        frozenset({"order", "position", "frame", "step", "sequence", "seq"}),
        frozenset({"timestamp", "time", "ts", "datetime", "date"}),
    ),
    "test": (frozenset({"test", "istest"}), frozenset({"split", "subset", "partition"})),
}
REQUIRED = ("image", "label", "device")


@dataclass(frozen=True)
class Columns:
    """Which column of the source plays which role; ``None`` where no column does.

    Attributes:
        image: pixels, encoded bytes, or paths of image files.
        label: the class.
        device: whose images they are.
        group: the population that a device belongs to.
        order: sorts the images of a device; the order of rows where there is none.
        test: which devices the source keeps for tests.
    """

    image: str
    label: str
    device: str
    group: str | None = None
    order: str | None = None
    test: str | None = None

    def as_dict(self) -> dict[str, str | None]:
        """The mapping as plain values."""
        return asdict(self)


def normalise(name: str) -> str:
    """A column's name without case, blanks and punctuation.

    Example::

        >>> normalise("Writer ID")
        "writerid"
    """
    return re.sub(r"[^a-z0-9]", "", name.lower())


def map_columns(names: Sequence[str], explicit: dict[str, str | None], source: str) -> Columns:
    """Give each role a column: the one named in ``explicit``, else by the names.

    Raises:
        DataError: an explicit column does not exist, a required role has no column or several.
    """
    for role, name in explicit.items():
        if name is not None and name not in names:
            raise DataError(f"{source} has no column {name!r} for {role}=: {nearest(name, names)}")
    found: dict[str, str | None] = {}
    for role in SYNONYMS:
        free = [name for name in names if name not in found.values()]
        found[role] = explicit.get(role) or _by_name(role, free, source)
    for role in REQUIRED:
        if found[role] is None:
            raise DataError(
                f"{source}: no column looks like the {role}, give {role}=... (columns: {', '.join(names) or 'none'})"
            )
    return Columns(str(found["image"]), str(found["label"]), str(found["device"]), *list(found.values())[3:])


def _by_name(role: str, names: Sequence[str], source: str) -> str | None:
    for tier in SYNONYMS[role]:
        hits = [name for name in names if normalise(name) in tier]
        if len(hits) > 1:
            listing = " and ".join(repr(hit) for hit in hits)
            raise DataError(f"{source}: columns {listing} could each be the {role}: choose one with {role}=...")
        if hits:
            return hits[0]
    return None
