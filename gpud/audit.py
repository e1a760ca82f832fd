"""The audit: one line of JSON for every set, refusal, lapse and restoration, appended and never changed."""

import asyncio
import json
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

MOST_BYTES = 64 * 1024 * 1024
"""Then a new file begins; the last ``KEPT`` stay. Forty sets a second fill one in two hours."""
KEPT = 8


class Audit:
    """Lines of who, why, what was and is set, what the driver answered and what was observed. No prompts, no tokens."""

    def __init__(self, path: Path, most_bytes: int = MOST_BYTES) -> None:
        self._path, self._most_bytes = path, most_bytes
        self._lock = threading.Lock()
        self._open()

    def note_soon(self, event: str, **what: Any) -> None:
        """As ``note``, when the event loop has nothing else to do at this moment: the answer goes first."""
        asyncio.get_running_loop().call_later(0.0, lambda: self.note(event, **what))

    def note(self, event: str, **what: Any) -> None:
        """What cannot be written is logged and stops nobody: a full disk must not keep a clock lowered."""
        line = {"at": round(time.time(), 3), "event": event, **{k: v for k, v in what.items() if v is not None}}
        text = (json.dumps(line, allow_nan=False, default=str) + "\n").encode()
        with self._lock:
            try:
                os.write(self._file, text)
                self._written += len(text)
                if self._written > self._most_bytes:
                    self._rotate()
            except OSError as error:
                log.error("the audit cannot be written (%s): %s", error, text.decode().strip())

    def close(self) -> None:
        os.close(self._file)

    def _open(self) -> None:
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        self._written = os.fstat(self._file).st_size

    def _rotate(self) -> None:
        os.close(self._file)
        for number in range(KEPT - 1, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{number}")
            if older.exists():
                older.replace(self._path.with_name(f"{self._path.name}.{number + 1}"))
        self._path.replace(self._path.with_name(f"{self._path.name}.1"))
        self._open()
