"""A manager's last decisions, for `explain`: noted once it is known what became of them."""

from collections import deque
from collections.abc import Callable

from actors import metrics
from actors.messages import Decision

KEPT = 1000


class DecisionLog:
    """Identifiers are unique across restarts of the manager: they hold the moment at which it started."""

    def __init__(self, source: str, name: str, epoch_s: Callable[[], float]) -> None:
        self._source, self._epoch_s = source, epoch_s
        self._prefix = f"{name}-{int(epoch_s() * 1000):x}"
        self._decided = 0
        self._decisions: deque[Decision] = deque(maxlen=KEPT)

    def note(self, action: str, why: str, outcome: str = "done") -> None:
        self._decided += 1
        name = f"{self._prefix}-{self._decided}"
        self._decisions.append(Decision(name, self._epoch_s(), self._source, action, why, outcome))
        metrics.decision(self._source)

    def last(self, count: int) -> tuple[Decision, ...]:
        """The last ones, oldest first; none for a count below 1."""
        return tuple(self._decisions)[-count:] if count > 0 else ()
