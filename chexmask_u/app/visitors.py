"""The image of each visitor, in memory and for as long as the page is open."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from chexmask_u.app.study import Case, Choice, Seen, sample, see
from chexmask_u.calibration.calibration import Calibration
from chexmask_u.errors import InputError
from chexmask_u.model.network import Network

# An image takes 1 MiB.
_MOST = 200


@dataclass
class Visit:
    """An image that somebody looks at, and how unsure the network is of it as it is."""

    case: Case
    _before: tuple[Choice, Mapping[str, Any]] | None = field(default=None, init=False)

    def see(self, choice: Choice, model: Network, calibration: Calibration | None) -> Seen:
        """As `study.see`, which predicts the image as it is once for as long as the draws stay the same."""
        known = self._before
        before = known[1] if known and known[0] == choice.clean else None
        seen = see(self.case, choice, model, calibration, before)
        self._before = choice.clean, seen.before
        return seen


@dataclass
class Visitors:
    """Visits by session; a session that brought no image looks at the first sample.

    Attributes:
        most: images that are kept at once; beyond it the one that was used the longest ago is dropped.
    """

    most: int = _MOST
    _visits: OrderedDict[str, Visit] = field(default_factory=OrderedDict, init=False)
    _dropped: set[str] = field(default_factory=set, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def put(self, session: str, case: Case) -> None:
        """Keep an image, in place of the session's last one."""
        with self._lock:
            self._keep(session, Visit(case))

    def get(self, session: str) -> Visit:
        """The session's visit.

        Raises:
            InputError: if its image was dropped.
        """
        with self._lock:
            if session in self._dropped:
                raise InputError("many people have been here since, and your image was dropped: open it once more")
            return self._keep(session, self._visits.get(session) or Visit(sample(0)))

    def leave(self, session: str) -> None:
        """Forget a session, whose page was closed."""
        with self._lock:
            self._visits.pop(session, None)
            self._dropped.discard(session)

    def _keep(self, session: str, visit: Visit) -> Visit:
        self._dropped.discard(session)
        self._visits[session] = visit
        self._visits.move_to_end(session)
        if len(self._visits) > self.most:
            self._dropped.add(self._visits.popitem(last=False)[0])
        return visit
