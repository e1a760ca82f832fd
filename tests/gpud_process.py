"""A gpud process of a test's own: its socket, its state, and how it is ended."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests_support import ROOT

from actors.gpu.gpud_client import GpudClient, GpudError


class GpudProcess:
    """Started by ``start``, which returns when it answers; may be killed and started again with the same state."""

    def __init__(self, folder: Path, environ: Mapping[str, str], options: Sequence[str] = ()) -> None:
        self.folder, self._environ, self._options = folder, dict(environ), list(options)
        self.socket, self.state = folder / "gpud.sock", folder / "state"
        self.process: subprocess.Popen[bytes] | None = None
        self.client = GpudClient(self.socket)

    def start(self) -> "GpudProcess":
        command = [
            sys.executable,
            "-m",
            "gpud",
            "--socket",
            str(self.socket),
            "--state",
            str(self.state),
            *self._options,
        ]
        log = (self.folder / "gpud.log").open("ab")
        self.process = subprocess.Popen(command, env={**os.environ, **self._environ}, cwd=ROOT, stderr=log, stdout=log)
        deadline_s = time.monotonic() + 15
        while True:
            try:
                self.client.read()
                return self
            except GpudError:
                assert self.process.poll() is None, (self.folder / "gpud.log").read_text()
                assert time.monotonic() < deadline_s, "gpud does not answer"
                time.sleep(0.02)

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def end(self) -> int:
        """As systemd ends it; its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
        try:
            return self.process.wait(10)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait(10)
            self.client.close()

    def rows(self) -> dict[str, Any]:
        return {row["uuid"]: row for row in self.client.read(max_age_s=0.0)["gpus"]}

    def audit(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.state / "audit.jsonl").read_text().splitlines()]


def eventually(claim: Callable[[], object], patience_s: float = 5.0) -> None:
    """Until ``claim()`` is true; the last answer is in the failure."""
    deadline_s = time.monotonic() + patience_s
    while not (answer := claim()):
        assert time.monotonic() < deadline_s, f"never came true, last answer {answer!r}"
        time.sleep(0.02)
