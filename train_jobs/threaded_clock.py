"""Sets a GPU's clock from a thread of its own: the training step leaves word and goes on."""

import logging
import threading
from collections import deque
from collections.abc import Callable

from train_jobs.scheduled_clock import ClockControl

log = logging.getLogger(__name__)

POLL_S = 0.0005
MOST_WORDS = 4096

Ready = Callable[[], bool]
"""Whether the GPU has come to where a clock was asked for: it runs behind the thread that gives it work."""


def _at_once() -> bool:
    return True


class ThreadedClock:
    """``control`` may take milliseconds. Of several clocks whose time has come only the newest is set. ``mark`` is
    called in the training thread whenever a clock is asked for, and says when its time has come."""

    def __init__(
        self, control: ClockControl, full_clock_mhz: int, mark: Callable[[], Ready] = lambda: _at_once
    ) -> None:
        self._control, self._asked_mhz, self._mark = control, full_clock_mhz, mark
        self._changed = threading.Condition()
        self._words: deque[tuple[int, int, Ready]] = deque(maxlen=MOST_WORDS)
        self._busy = self._closed = False
        self._thread = threading.Thread(target=self._set_forever, name="clock", daemon=True)
        self._thread.start()

    def set_clock(self, freq_mhz: int, at_ns: int) -> None:
        """Returns at once."""
        ready = self._mark()
        with self._changed:
            self._asked_mhz = freq_mhz
            self._words.append((freq_mhz, at_ns, ready))
            self._changed.notify_all()

    def target_mhz(self) -> int:
        """What was asked for last."""
        return self._asked_mhz

    def flush(self, patience_s: float) -> bool:
        """Wait until what was asked for last has been set; for the end of training."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._words and not self._busy, patience_s)

    def close(self) -> None:
        """Words that are left are not carried out."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _set_forever(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or bool(self._words))
                if self._closed:
                    return
                due = self._due()
                self._busy = due is not None
                if due is None:
                    self._changed.wait_for(lambda: self._closed, POLL_S)
                    continue
            try:
                self._control.set_clock(*due)
            except Exception:
                # The thread goes on: the lease's end brings the clock back whatever became of this set.
                log.exception("a clock was not set")
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    def _due(self) -> tuple[int, int] | None:
        """The newest of the words whose time has come; those before it are dropped."""
        due = None
        while self._words and self._words[0][2]():
            freq_mhz, at_ns, _ = self._words.popleft()
            due = (freq_mhz, at_ns)
        return due
