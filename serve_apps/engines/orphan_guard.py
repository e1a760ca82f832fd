"""Ends what a process has started once that process is gone, however it ended: vLLM's engine process outlives a parent
that is killed, and keeps the GPU's memory from the replica that follows.

A process of its own, run as ``python -m serve_apps.engines.orphan_guard PID``; its standard input is a pipe that closes
with the parent.
"""

import select
import subprocess
import sys

import psutil

LOOK_S = 2.0


class OrphanGuard:
    """Guards the processes that this one starts from now on, those in their own sessions included."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", __name__, str(psutil.Process().pid)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def end(self) -> None:
        """What was started is left alone."""
        self._process.kill()
        self._process.wait()


def main() -> None:
    parent, known = psutil.Process(int(sys.argv[1])), set[psutil.Process]()
    own = psutil.Process()
    while not select.select([sys.stdin], [], [], LOOK_S)[0]:
        try:
            known |= {process for process in parent.children(recursive=True) if process != own}
        except psutil.NoSuchProcess:
            break
        known = {process for process in known if process.is_running()}
    for process in known:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


if __name__ == "__main__":
    main()
