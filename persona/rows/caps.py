"""How much one user counts: at most some events of a row, and some in all, in every window of time.

Which events of a user count depends on that user's own events alone, so workers that share the users out agree.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass
class Caps:
    """Counts what users have been admitted with, window by window.

    Attributes:
        per_row: events of one user at one row that count in a window.
        per_user: events of one user that count in a window.
    """

    per_row: int
    per_user: int
    _rows: Counter[tuple[int, int, int]] = field(default_factory=Counter, repr=False)
    _users: Counter[tuple[int, int]] = field(default_factory=Counter, repr=False)

    def admit(
        self, users: NDArray[np.integer], rows: NDArray[np.integer], windows: NDArray[np.integer]
    ) -> NDArray[np.bool_]:
        """Which of E events count, in the order given: users, rows and windows (a day, say) (E,) -> (E,)."""
        admitted = np.zeros(len(users), dtype=bool)
        for event, (user, row, window) in enumerate(zip(users.tolist(), rows.tolist(), windows.tolist(), strict=True)):
            at_row, in_all = (window, user, row), (window, user)
            if self._rows[at_row] < self.per_row and self._users[in_all] < self.per_user:
                self._rows[at_row] += 1
                self._users[in_all] += 1
                admitted[event] = True
        return admitted

    def close(self, window: int) -> None:
        """Forget the windows before this one, of which no event is to come."""
        self._rows = Counter({key: count for key, count in self._rows.items() if key[0] >= window})
        self._users = Counter({key: count for key, count in self._users.items() if key[0] >= window})

    def most(self, users: int, windows: int = 1) -> tuple[int, int]:
        """How many events ``users`` who collude get counted in so many windows: at any one row, and in all."""
        return users * windows * min(self.per_row, self.per_user), users * windows * self.per_user
