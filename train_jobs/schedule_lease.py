"""A job's lease on the clock of its GPU, renewed in the background; when renewing fails the right to lower it ends.

Time is counted from before each question, on the monotonic clock: a slow answer shortens the lease, and setting the
wall clock changes nothing. While the agent is silent the lease runs out; a refusal ends it at once.
"""

import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

RENEWALS_PER_TTL = 3
CALL_TIMEOUT_S = 5.0


class LeaseRefusedError(ValueError):
    """The GPU's agent does not give this owner the GPU; the message says why."""


class ScheduleLease:
    """``renew(timeout_s)`` asks the agent and returns whether clocks may be set; it raises LeaseRefusedError where the
    GPU is another's, and anything else where the agent does not answer. What the first call raises is raised here."""

    def __init__(
        self, renew: Callable[[float], bool], ttl_s: float, monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._renew, self._ttl_s, self._monotonic_s = renew, ttl_s, monotonic_s
        self._every_s = ttl_s / RENEWALS_PER_TTL
        self._until_s = float("-inf")
        self._stop = threading.Event()
        self._on_lost: Callable[[], None] | None = None
        self._take()
        self._lost = not self.may_lower()
        self._renewing = threading.Thread(target=self._renew_forever, name="schedule-lease", daemon=True)
        self._renewing.start()

    def may_lower(self) -> bool:
        return self._monotonic_s() < self._until_s

    def when_lost(self, act: Callable[[], None]) -> None:
        """``act`` is called from the lease's own thread whenever the right to lower clocks has ended unasked."""
        self._on_lost = act

    def end(self) -> None:
        """Renew no more; clocks may not be lowered from now on."""
        self._stop.set()
        self._until_s = float("-inf")
        self._renewing.join(timeout=2 * CALL_TIMEOUT_S)
        self._until_s = float("-inf")

    def _take(self) -> None:
        asked_s = self._monotonic_s()
        allowed = self._renew(min(CALL_TIMEOUT_S, self._every_s))
        self._until_s = asked_s + self._ttl_s if allowed else float("-inf")

    def _renew_forever(self) -> None:
        while not self._stop.wait(self._every_s):
            try:
                self._take()
            except LeaseRefusedError as error:
                self._until_s = float("-inf")
                log.error("the lease is refused, full clock: %s", error)
            except Exception:
                # Whatever it is, the thread goes on: the next renewal may succeed.
                log.warning("the lease is not renewed (full clock when it lapses)", exc_info=True)
            self._tell_if_lost()

    def _tell_if_lost(self) -> None:
        # What would lapse before the next look counts as lost now: clocks are full within the time to live.
        lost = self._until_s - self._monotonic_s() < self._every_s
        if lost and not self._lost and self._on_lost is not None and not self._stop.is_set():
            self._until_s = float("-inf")
            try:
                self._on_lost()
            except Exception:
                log.exception("the GPU was not brought to full clock; its agent does so")
        self._lost = lost
