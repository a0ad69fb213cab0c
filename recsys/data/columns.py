"""The names of columns, in one place: those this project writes, and those it recognises in other people's files."""

import re
from dataclasses import dataclass

USER = "user_id"
ITEM = "item_id"
TIME = "timestamp"
TITLE = "title"

# Each role's names in tiers, most telling first, in the form that ``normalise`` gives. A tier is asked only where no
# tier before it has a hit; two hits in one tier are ambiguous, and the user has to choose.
SYNONYMS: dict[str, tuple[frozenset[str], ...]] = {
    "user": (
        frozenset({"userid", "user", "uid", "userno", "usernumber"}),
        frozenset({"customerid", "customer", "custid", "reviewerid", "reviewer", "memberid", "member", "accountid"}),
        frozenset({"deviceid", "device", "visitorid", "visitor", "clientid", "client", "householdid", "household"}),
        frozenset({"sessionid", "session"}),
    ),
    "item": (
        frozenset({"itemid", "item", "iid", "itemno"}),
        frozenset({"movieid", "movie", "filmid", "film", "productid", "product", "asin", "parentasin", "stockcode"})
        | frozenset({"sku", "articleid", "article", "bookid", "book", "isbn", "gameid", "game", "appid", "app"})
        | frozenset({"songid", "song", "trackid", "track", "artistid", "artist", "videoid", "video", "newsid", "news"})
        | frozenset({"businessid", "business", "venueid", "venue", "poiid", "poi", "recipeid", "recipe", "adid"})
        | frozenset({"showid", "animeid", "podcastid", "hotelid", "placeid", "contentid", "documentid", "docid"}),
    ),
    "time": (
        frozenset({"timestamp", "unixtimestamp", "unixreviewtime", "eventtimestamp", "unixtime", "unix"}),
        frozenset({"time", "ts", "datetime", "eventtime", "epoch", "createdat", "tdat", "invoicedate"}),
        frozenset({"date", "day", "eventdate", "purchasedate", "orderdate", "reviewtime", "reviewdate"}),
    ),
    "order": (
        frozenset({"position", "pos"}),
        frozenset({"order", "eventorder", "sequence", "seq", "sequenceno", "step", "idx", "index"}),
    ),
    "title": (
        frozenset({"title", "itemtitle", "movietitle", "producttitle", "filmtitle", "booktitle"}),
        frozenset({"itemname", "productname", "prodname", "moviename", "description"}),
    ),
}


def normalise(name: str) -> str:
    """A column's name without case, blanks and punctuation.

    Example::

        >>> normalise("User ID")
        "userid"
    """
    return re.sub(r"[^a-z0-9]", "", name.lower())


def candidates(role: str, names: list[str]) -> list[str]:
    """The columns among ``names`` that the first telling tier of ``role`` recognises; several mean ambiguity."""
    for tier in SYNONYMS[role]:
        hits = [name for name in names if normalise(name) in tier]
        if hits:
            return hits
    return []


def is_known(name: str) -> bool:
    """Whether any role recognises this name, which tells a header from a first row of data."""
    return any(normalise(name) in tier for tiers in SYNONYMS.values() for tier in tiers)


@dataclass(frozen=True)
class ColumnMapping:
    """Which column of the source plays which role; ``None`` where no column does.

    ``order`` is set only where there is no ``time``.
    """

    user: str
    item: str
    time: str | None
    order: str | None
    title: str | None

    def as_dict(self) -> dict[str, str | None]:
        """The mapping as plain values."""
        return {"user": self.user, "item": self.item, "time": self.time, "order": self.order, "title": self.title}
