"""What one check found."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        name: what was looked at.
        status: ``fail`` where something will not work, ``warn`` where it will work badly, else ``ok``.
        detail: what was found, one sentence.
        mend: the line that mends it, to be copied into a shell; empty if nothing needs mending.
    """

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    mend: str = ""
