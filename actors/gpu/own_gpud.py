"""A gpud of the agent's own, where the node has none: started, watched and started again, with the agent's privilege.

It outlives its agent, so that leases lapse when the agent is killed; it ends by itself when nobody has needed it for a
while. A node's gpud (systemd, Kubernetes) is better: it survives what ends a whole node of Ray.
"""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from actors.gpu.gpud_client import GpudClient, GpudError

log = logging.getLogger(__name__)

START_S = 15.0
END_IDLE_S = 60.0


@dataclass(frozen=True, slots=True)
class OwnGpud:
    """How it is started. ``simulated_file``: the simulated GPUs; None for NVIDIA's."""

    socket: Path
    state: Path
    ttl_max_s: float
    dry_run: bool
    simulated_file: Path | None = None

    def command(self) -> list[str]:
        command = [sys.executable, "-m", "gpud", "--socket", str(self.socket), "--state", str(self.state)]
        command += ["--ttl-max", str(self.ttl_max_s), "--end-when-idle", str(END_IDLE_S)]
        if self.dry_run:
            command.append("--dry-run")
        if self.simulated_file is not None:
            command += ["--driver", "simulated", "--simulated-file", str(self.simulated_file)]
        return command


class OwnGpudKeeper:
    """Keeps it running; one that answers already (an earlier agent's) is taken over."""

    def __init__(self, how: OwnGpud, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._how, self._monotonic_s = how, monotonic_s
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it answers. Raises GpudError where it does not."""
        if self._answers():
            return
        self._launch()
        until_s = self._monotonic_s() + START_S
        while not self._answers():
            if self._monotonic_s() > until_s or (self._process is not None and self._process.poll() is not None):
                raise GpudError(f"gpud does not start; its log is {self._log_file}")
            time.sleep(0.05)

    def look_after(self) -> None:
        """Called every second: a gpud that has ended is started again. Waits for nothing."""
        if self._process is not None and self._process.poll() is not None and not self._answers():
            log.warning("gpud ended with code %s and is started again", self._process.returncode)
            self._launch()
        elif self._process is None and not self._answers():
            self._launch()

    @property
    def _log_file(self) -> Path:
        return self._how.state / "gpud.log"

    def _launch(self) -> None:
        self._how.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._log_file.open("ab") as written:
            self._process = subprocess.Popen(
                self._how.command(),
                stdin=subprocess.DEVNULL,
                stdout=written,
                stderr=written,
                start_new_session=True,
                # It needs none of what Ray puts into a worker's environment, but it is found by the run's name.
                env={name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            )

    def _answers(self) -> bool:
        if not self._how.socket.exists():
            return False
        client = GpudClient(self._how.socket, timeout_s=1.0)
        try:
            client.read(None, 3600.0)
        except GpudError:
            return False
        finally:
            client.close()
        return True
