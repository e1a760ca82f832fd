"""Which process a recorded pid meant: a pid alone may belong to a stranger by now."""

from dataclasses import dataclass

import psutil

SAME_START_S = 0.05
"""psutil computes a start time from the boot time, which a corrected clock moves a little."""


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process by its pid and the moment it started, in seconds since the epoch."""

    pid: int
    started_s: float

    @classmethod
    def of(cls, pid: int) -> "ProcessIdentity":
        """Raises psutil.NoSuchProcess where it has ended already."""
        return cls(pid, psutil.Process(pid).create_time())

    def process(self) -> psutil.Process | None:
        """The process, if it still runs and is the one that was meant."""
        try:
            found = psutil.Process(self.pid)
            if abs(found.create_time() - self.started_s) > SAME_START_S or found.status() == psutil.STATUS_ZOMBIE:
                return None
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return None
        return found
