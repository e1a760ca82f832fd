"""Follows the log of a run that goes on, for whoever shows how far it is."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from train_jobs.log_file import Started

LOOK_EVERY_S = 0.3
_DONE = b'{"event":"iterated"'

Progress = Callable[[int], None]
"""Told how many iterations are done; fewer than before where workers restart from a checkpoint."""


@contextmanager
def followed(log_file: Path, progress: Progress) -> Iterator[None]:
    """While the block runs, ``progress`` is told from a thread. It reads only what has been added, and once more at the
    end."""
    stop = threading.Event()
    follower = LogFollower(log_file)

    def follow() -> None:
        while not stop.wait(LOOK_EVERY_S):
            progress(follower.iterations())

    thread = threading.Thread(target=follow, name="log-follower", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=2.0)
        progress(follower.iterations())


class LogFollower:
    """How far a run is, at the cost of what its log has grown by."""

    def __init__(self, log_file: Path) -> None:
        self._path, self._read_bytes, self._done = log_file, 0, 0

    def iterations(self) -> int:
        """Done by now; 0 while there is no log."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._read_bytes)
                grown = file.read()
        except FileNotFoundError:
            return self._done
        whole, _, _ = grown.rpartition(b"\n")
        if whole:
            self._read_bytes += len(whole) + 1
            for line in whole.split(b"\n"):
                if line.startswith(_DONE):
                    self._done += 1
                elif line.startswith(b'{"event":"started"'):
                    self._done = Started.model_validate_json(line).from_iteration
        return self._done
